// What kernels need that work on several rows at once: the reductions of all of them in one register, and finished
// results that go to memory while the next rows are computed.
#pragma once

#include "vec.h"

namespace slw {
namespace SLW_ISA {

template <class S> struct Larger {
  Reg<S> operator()(Reg<S> a, Reg<S> b) const { return larger<S>(a, b); }
};
template <class S> struct Plus {
  Reg<S> operator()(Reg<S> a, Reg<S> b) const { return a + b; }
};

#if defined(__AVX512F__)
// Four rows; each 128 bits of the result have a part of every one of them.
template <class Op> inline Reg<float> fold_four(const Reg<float>* rows, Op op) {
  const auto pairs = [&](Reg<float> a, Reg<float> b) {
    return op((Reg<float>)_mm512_unpacklo_ps((__m512)a, (__m512)b), (Reg<float>)_mm512_unpackhi_ps((__m512)a, (__m512)b));
  };
  const __m512d a = (__m512d)pairs(rows[0], rows[1]), b = (__m512d)pairs(rows[2], rows[3]);
  return op((Reg<float>)_mm512_unpacklo_pd(a, b), (Reg<float>)_mm512_unpackhi_pd(a, b));
}
template <class Op> inline Reg<float> fold_parts(Reg<float> a, Reg<float> b, Op op) {
  return op((Reg<float>)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88),
            (Reg<float>)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd));
}
#elif defined(__AVX2__)
template <class Op> inline Reg<float> fold_four(const Reg<float>* rows, Op op) {
  const auto pairs = [&](Reg<float> a, Reg<float> b) {
    return op((Reg<float>)_mm256_unpacklo_ps((__m256)a, (__m256)b), (Reg<float>)_mm256_unpackhi_ps((__m256)a, (__m256)b));
  };
  const __m256d a = (__m256d)pairs(rows[0], rows[1]), b = (__m256d)pairs(rows[2], rows[3]);
  return op((Reg<float>)_mm256_unpacklo_pd(a, b), (Reg<float>)_mm256_unpackhi_pd(a, b));
}
template <class Op> inline Reg<float> fold_parts(Reg<float> a, Reg<float> b, Op op) {
  return op((Reg<float>)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20),
            (Reg<float>)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31));
}
#endif

// Lane i of the result: all lanes of rows[i] put together by op. As many rows as lanes.
template <class S, class Op> inline Reg<S> fold(const Reg<S>* rows, Op op) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return fold_parts(fold_parts(fold_four(rows, op), fold_four(rows + 4, op), op),
                      fold_parts(fold_four(rows + 8, op), fold_four(rows + 12, op), op), op);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return fold_parts(fold_four(rows, op), fold_four(rows + 4, op), op);
#endif
  constexpr int L = kLanes<S>;
  Reg<S> result = {};
  for (int j = 0; j < L; ++j) {
    Reg<S> lane;
    for (int i = 0; i < L; ++i) lane[i] = rows[i][j];
    result = j ? op(result, lane) : lane;
  }
  return result;
}

// A finished block of memory that is written past the caches, some lines at a time between other work: the processor
// holds back only so many stores before it waits for them.
template <bool Past> class Pending {
 public:
  // From here on `bytes` bytes at `from` belong to `to`; what was pending is finished.
  void begin(void* to, const void* from, int64_t bytes) {
    to_ = static_cast<char*>(to);
    from_ = static_cast<const char*>(from);
    const int64_t head = least(bytes, -reinterpret_cast<uintptr_t>(to) & (kBytes - 1));
    memcpy(to_, from_, head);
    to_ += head;
    from_ += head;
    left_ = bytes - head;
  }
  // So many registers of it, or what is left.
  void send(int64_t registers) {
    const int64_t bytes = least(registers * kBytes, left_ / kBytes * kBytes);
    if (bytes <= 0) return;
    char* to = to_;
    const char* from = from_;
#pragma GCC unroll 1
    for (int64_t i = 0; i < bytes; i += kBytes) line(to + i, from + i);
    to_ = to + bytes;
    from_ = from + bytes;
    left_ -= bytes;
  }
  void finish() {
    send(left_ / kBytes);
    if (left_) memcpy(to_, from_, left_);
    left_ = 0;
  }

 private:
  static void line(char* to, const char* from) {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i*)to, _mm512_loadu_si512(from));
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i*)to, _mm256_loadu_si256((const __m256i*)from));
#else
    memcpy(to, from, kBytes);
#endif
  }
  char* to_ = nullptr;
  const char* from_ = nullptr;
  int64_t left_ = 0;
};
template <> class Pending<false> {
 public:
  void send(int64_t) {}
  void finish() {}
};

}  // namespace SLW_ISA
}  // namespace slw
