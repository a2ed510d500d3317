// What touching the next four pages in turns is worth, without arithmetic, beside a memcpy: of csrc/cpu/ahead.h.
//
//     g++ -O3 -march=native benchmarks/read_ahead.cpp -o /tmp/read_ahead && /tmp/read_ahead
//
// Needs AVX-512. Processor time of one thread, the best of 15 turns, 64 MB of fp32.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

constexpr int64_t kElements = 16 << 20, kPage = 1024, kLine = 16, kStreams = 4, kTurn = kStreams * kPage;

double now() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

__attribute__((noinline)) void copy_in_turns(const float* x, float* out) {
  for (int64_t block = 0; block < kElements; block += kTurn)
    for (int64_t i = 0; i < kTurn; i += kLine) {
      const int64_t line = i / kLine, ahead = line % kStreams * kPage + line / kStreams * kLine;
      _mm_prefetch(reinterpret_cast<const char*>(x + block + kTurn + ahead), _MM_HINT_T0);
      _mm512_stream_ps(out + block + i, _mm512_load_ps(x + block + i));
    }
  _mm_sfence();
}

// The sum of the first `seen` keys of each row: of its own number where causal, else of all.
__attribute__((noinline)) float read_rows(const float* x, int64_t keys, bool causal) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t row = 0; row < kElements / keys; ++row)
    for (int64_t j = 0; j < (causal ? row % keys + 1 : keys); j += kLine)
      sum = _mm512_add_ps(sum, _mm512_load_ps(x + row * keys + j));
  return _mm512_reduce_add_ps(sum);
}

template <class F> double best(F f) {
  double seconds = 1e9;
  for (int turn = 0; turn < 15; ++turn) {
    const double start = now();
    f();
    seconds = std::min(seconds, now() - start);
  }
  return seconds;
}

int main() {
  const size_t bytes = (kElements + kTurn) * sizeof(float);
  float* x = static_cast<float*>(aligned_alloc(4096, bytes));
  float* out = static_cast<float*>(aligned_alloc(4096, bytes));
  if (!x || !out) return 1;
  memset(x, 1, bytes);
  memset(out, 1, bytes);
  const double plain = best([&] { memcpy(out, x, kElements * sizeof(float)); });
  printf("a copy in turns on four pages: %.2f of a memcpy's speed\n", plain / best([&] { copy_in_turns(x, out); }));
  volatile float kept = 0;
  for (int64_t keys : {64, 128, 256, 1024}) {
    const double whole = best([&] { kept = read_rows(x, keys, false); });
    const double seen = best([&] { kept = read_rows(x, keys, true); });
    printf("%4ld keys: reading those a causal row sees takes %.2f of reading all\n", static_cast<long>(keys), seen / whole);
  }
  return kept != kept;
}
