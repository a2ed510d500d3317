// A register of floats or doubles for the instruction set that this file is compiled for, and the operations that the
// kernels need on it. Everything lies in namespace slw::SLW_ISA: the same source is compiled once per instruction set,
// and inline code of one must never be merged by the linker with that of another. For the same reason no function of
// the C++ library is instantiated here.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "args.h"

namespace slw {
namespace SLW_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class S> struct Lanes;
template <> struct Lanes<float> {
  typedef float reg __attribute__((vector_size(kBytes)));
  typedef int32_t ints __attribute__((vector_size(kBytes)));
};
template <> struct Lanes<double> {  // for checks, not for speed
  typedef double reg __attribute__((vector_size(16)));
  typedef int64_t ints __attribute__((vector_size(16)));
};
template <class S> using Reg = typename Lanes<S>::reg;
template <class S> using Ints = typename Lanes<S>::ints;
template <class S> constexpr int kLanes = static_cast<int>(sizeof(Reg<S>) / sizeof(S));

// What a stored type is computed in.
template <class T> struct Compute { typedef float type; };
template <> struct Compute<double> { typedef double type; };
template <class T> using Wide = typename Compute<T>::type;

template <class S> inline Reg<S> splat(S value) {
  return value - Reg<S>{};  // exact for every value
}
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
template <class S> inline Reg<S> larger(Reg<S> a, Reg<S> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Reg<S>)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return (Reg<S>)_mm256_max_ps((__m256)a, (__m256)b);
#endif
  return a > b ? a : b;
}
template <class S> struct Larger {
  Reg<S> operator()(Reg<S> a, Reg<S> b) const { return larger<S>(a, b); }
};
template <class S> struct Plus {
  Reg<S> operator()(Reg<S> a, Reg<S> b) const { return a + b; }
};
// All lanes put together by op: halves, quarters, and so on.
template <class S, class Op> inline S lanes_of(Reg<S> v, Op op) {
  for (int half = kLanes<S> / 2; half > 0; half /= 2) {
    Reg<S> other = v;
    for (int i = 0; i < half; ++i) other[i] = v[half + i];
    v = op(v, other);
  }
  return v[0];
}
template <class S> inline S sum_of(Reg<S> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return _mm512_reduce_add_ps((__m512)v);
#endif
  return lanes_of<S>(v, Plus<S>{});
}
template <class S> inline S max_of(Reg<S> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return _mm512_reduce_max_ps((__m512)v);
#endif
  return lanes_of<S>(v, Larger<S>{});
}

// 2^x, relative error 2e-7; below the smallest normal number 0. The polynomials are least-maximum fits.
inline Reg<float> exp2_of(Reg<float> x) {
#if defined(__AVX512F__)
  // The fraction from the whole number below, in [0, 1): scalef takes that whole number from x itself. FlushTiny makes
  // what is below the smallest normal number 0.
  const Reg<float> f = (Reg<float>)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Reg<float> p = splat(0.0018671302823349833f);
  p = p * f + 0.009017029777169228f;
  p = p * f + 0.05579991266131401f;
  p = p * f + 0.24016444385051727f;
  p = p * f + 0.6931512951850891f;
  p = p * f + 1.0f;
  return (Reg<float>)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  x = x > 127.99f ? splat(127.99f) : x;
  const auto tiny = x < -126.0f;
  x = tiny ? splat(-126.0f) : x;
  const Reg<float> magic = splat(12582912.0f);  // 1.5 x 2^23: adding it rounds to a whole number
  const Reg<float> shifted = x + magic;
  const Reg<float> f = x - (shifted - magic);  // in [-1/2, 1/2]
  Reg<float> p = splat(0.0013276466634124517f);
  p = p * f + 0.009675540961325169f;
  p = p * f + 0.05550713464617729f;
  p = p * f + 0.24022120237350464f;
  p = p * f + 0.6931469440460205f;
  p = p * f + 1.0000001192092896f;
  const Ints<float> power = ((Ints<float>)shifted - (Ints<float>)magic) << 23;
  const Reg<float> result = (Reg<float>)((Ints<float>)p + power);
  return tiny ? splat(0.0f) : result;
#endif
}
inline Reg<double> exp2_of(Reg<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exp2(x[i]);
  return x;
}

// ---- one element ----
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float r;
  memcpy(&r, &bits, 4);
  return r;
}
inline float widen(half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  float r;
  if (magnitude < 0x400) {  // zero and subnormal
    r = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    uint32_t bits;
    memcpy(&bits, &r, 4);
    bits |= sign;
    memcpy(&r, &bits, 4);
    return r;
  }
  const uint32_t bits = sign | ((magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u));
  memcpy(&r, &bits, 4);
  return r;
#endif
}
template <class T> inline T narrow(Wide<T> x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline double narrow<double>(double x) { return x; }
template <> inline bfloat16 narrow<bfloat16>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return bfloat16{static_cast<uint16_t>((bits >> 16) | 0x40)};
  return bfloat16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <> inline half narrow<half>(float x) {
#if defined(__F16C__)
  return half{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return half{static_cast<uint16_t>(sign | 0x7e00)};
  if (bits >= 0x477ff000) return half{static_cast<uint16_t>(sign | 0x7c00)};  // rounds to infinity
  if (bits < 0x38800000) {  // subnormal: let the adder round
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return half{static_cast<uint16_t>(sign | (bits - 0x3f000000))};
  }
  return half{static_cast<uint16_t>(sign | ((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13))};
#endif
}

// ---- a register ----
template <class T> inline Reg<Wide<T>> load(const T* p) {
  Reg<Wide<T>> r;
  if constexpr (sizeof(T) == sizeof(Wide<T>)) {
    memcpy(&r, p, sizeof(r));
    return r;
  }
#if defined(__AVX512F__)
  if constexpr (is_half<T>) return (Reg<Wide<T>>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  if constexpr (is_bfloat16<T>)
    return (Reg<Wide<T>>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  if constexpr (is_half<T>) return (Reg<Wide<T>>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  if constexpr (is_bfloat16<T>)
    return (Reg<Wide<T>>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#endif
  for (int i = 0; i < kLanes<Wide<T>>; ++i) r[i] = widen(p[i]);
  return r;
}

#if defined(__AVX512F__)
inline __m256i to_bfloat16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
#endif

// Stores a register; `Past` writes past the caches and needs an address that the register's bytes divide.
template <bool Past, class T> inline void store(T* p, Reg<Wide<T>> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8) {
    memcpy(p, &v, sizeof(v));
  } else if constexpr (sizeof(T) == 4) {
    if constexpr (Past) _mm512_stream_ps((float*)p, (__m512)v);
    else memcpy(p, &v, sizeof(v));
  } else {
    __m256i packed;
    if constexpr (is_half<T>) packed = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
    else packed = to_bfloat16((__m512)v);
    if constexpr (Past) _mm256_stream_si256((__m256i*)p, packed);
    else _mm256_storeu_si256((__m256i*)p, packed);
  }
#else
  if constexpr (sizeof(T) == sizeof(Wide<T>)) {
#if defined(__AVX2__)
    if constexpr (Past && sizeof(T) == 4) {
      _mm256_stream_ps((float*)p, (__m256)v);
      return;
    }
#endif
    memcpy(p, &v, sizeof(v));
    return;
  }
#if defined(__AVX2__)
  if constexpr (is_half<T>) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
    return;
  }
#endif
  for (int i = 0; i < kLanes<Wide<T>>; ++i) p[i] = narrow<T>(v[i]);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif
#if defined(__AVX512F__)
template <class T> inline Reg<float> load_lanes(const T* p, __mmask16 lanes, float rest) {
  const Reg<float> r = splat(rest);
  if constexpr (sizeof(T) == 4) return (Reg<float>)_mm512_mask_loadu_ps((__m512)r, lanes, p);
  const __m256i raw = _mm256_maskz_loadu_epi16(lanes, p);
  __m512 wide;
  if constexpr (is_half<T>) wide = _mm512_cvtph_ps(raw);
  else wide = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
  return (Reg<float>)_mm512_mask_mov_ps((__m512)r, lanes, wide);
}
#endif
// The first n lanes, n at most the lanes of a register; the others read as `rest`, and are not read.
template <class T> inline Reg<Wide<T>> load_part(const T* p, int64_t n, Wide<T> rest) {
  Reg<Wide<T>> r = splat<Wide<T>>(rest);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) < 8) return load_lanes(p, static_cast<__mmask16>((1u << n) - 1), rest);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256i mask = first_lanes(n);
    return (Reg<Wide<T>>)_mm256_blendv_ps((__m256)r, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
  }
#endif
  for (int i = 0; i < n; ++i) r[i] = widen(p[i]);
  return r;
}
template <class T> inline void store_part(T* p, int64_t n, Reg<Wide<T>> v) {
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, mask, (__m512)v);
    return;
  }
  if constexpr (sizeof(T) == 2) {
    if constexpr (is_half<T>)
      _mm256_mask_storeu_epi16(p, mask, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
    else
      _mm256_mask_storeu_epi16(p, mask, to_bfloat16((__m512)v));
    return;
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_maskstore_ps(p, first_lanes(n), (__m256)v);
#endif
  for (int i = 0; i < n; ++i) p[i] = narrow<T>(v[i]);
}
template <bool Past, class T> inline void store_up_to(T* p, int64_t n, Reg<Wide<T>> v) {
  if (n >= kLanes<Wide<T>>) store<Past>(p, v);
  else store_part(p, n, v);
}
template <class T> inline Reg<Wide<T>> load_up_to(const T* p, int64_t n, Wide<T> rest) {
  return n >= kLanes<Wide<T>> ? load(p) : load_part(p, n, rest);
}

// A register whose first lane is element `at`: elements from `to` on, or before `from`, become `rest`.
template <class S> inline Ints<S> lanes_from(int64_t at) {
  Ints<S> lane;
  for (int i = 0; i < kLanes<S>; ++i) lane[i] = i;
  return lane + static_cast<int32_t>(at);
}
template <class S> inline Reg<S> only_before(Reg<S> r, int64_t at, int64_t to, S rest) {
  const Ints<S> limit = lanes_from<S>(0) * 0 + static_cast<int32_t>(to);
  return lanes_from<S>(at) < limit ? r : splat<S>(rest);
}
template <class S> inline Reg<S> only_from(Reg<S> r, int64_t at, int64_t from, S rest) {
  const Ints<S> limit = lanes_from<S>(0) * 0 + static_cast<int32_t>(from);
  return lanes_from<S>(at) < limit ? splat<S>(rest) : r;
}

// While it lives, results below the smallest normal number are 0 on this thread.
struct FlushTiny {
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr();
  FlushTiny() { _mm_setcsr(before | _MM_FLUSH_ZERO_ON); }
  ~FlushTiny() { _mm_setcsr(before); }
#endif
};

inline void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }  // into the second cache

// Whether the type can be written past the caches here, and whether rows of `columns` elements at p are worth it.
#if defined(__AVX512F__) || defined(__AVX2__)
template <class T> constexpr bool can_go_past = sizeof(T) < 8;
#else
template <class T> constexpr bool can_go_past = false;
#endif
template <class T> inline bool goes_past(const void* p, int64_t rows, int64_t columns, int64_t threshold) {
  const bool aligned = (reinterpret_cast<uintptr_t>(p) | (columns * sizeof(T))) % 64 == 0;
  return aligned && rows * columns * static_cast<int64_t>(sizeof(T)) >= threshold;
}

template <bool B> struct Flag { static constexpr bool value = B; };
template <int N> struct Number { static constexpr int value = N; };
template <int... N> struct Numbers {};
template <int Count, int... N> constexpr auto numbers() {  // 0 to Count - 1
  if constexpr (sizeof...(N) == Count) return Numbers<N...>{};
  else return numbers<Count, N..., static_cast<int>(sizeof...(N))>();
}

// Working memory of one thread.
template <class S> struct Buffer {
  S* data;
  explicit Buffer(int64_t n)
      : data(static_cast<S*>(aligned_alloc(64, (static_cast<size_t>(n) * sizeof(S) / 64 + 2) * 64))) {}
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

}  // namespace SLW_ISA
}  // namespace slw
