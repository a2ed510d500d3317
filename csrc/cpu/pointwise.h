// bias + GELU, and bias + dropout + residual. See megatron_slw/ops/bias_gelu.py and dropout_residual.py.
#pragma once

#include "ahead.h"

namespace slw {
namespace SLW_ISA {

constexpr double kGeluScale = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluCubic = 0.044715;

inline Reg<float> normal_cdf(Reg<float> u) {
  // erfc(z) = t exp(-z^2 + Q(t)) with t = 1 / (1 + z / 2), Q fitted for z in [0, 11]: relative error 1e-7 in the tail too.
  const Reg<float> z = (u < 0.0f ? -u : u) * 0.70710678118654752f;
  const Reg<float> t = splat(1.0f) / (z * 0.5f + 1.0f);
  Reg<float> q = splat(0.15070347487926483f);
  q = q * t - 0.7125428915023804f;
  q = q * t + 1.2320982217788696f;
  q = q * t - 0.797646701335907f;
  q = q * t + 0.00457889074459672f;
  q = q * t - 0.04439333453774452f;
  q = q * t + 0.05034061148762703f;
  q = q * t + 0.38330313563346863f;
  q = q * t + 0.9990262985229492f;
  q = q * t - 1.2654675245285034f;
  const Reg<float> half_tail = 0.5f * t * exp2_of((q - z * z) * 1.44269504f);
  return u < 0.0f ? half_tail : 1.0f - half_tail;
}
inline Reg<double> normal_cdf(Reg<double> u) {
  for (int i = 0; i < kLanes<double>; ++i) u[i] = 0.5 * erfc(-u[i] * 0.70710678118654752);
  return u;
}

// GELU(u) and its derivative.
template <class S, bool Tanh, bool Derivative> inline Reg<S> gelu(Reg<S> u) {
  const Reg<S> one = splat<S>(1);
  if constexpr (Tanh) {
    // (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z))
    const S inner = static_cast<S>(-2.0 * kGeluScale * 1.4426950408889634);
    const Reg<S> squares = u * u;
    const Reg<S> e = exp2_of(u * inner * (squares * static_cast<S>(kGeluCubic) + one));
    const Reg<S> s = one / (one + e);
    if constexpr (!Derivative) return u * s;
    const S slope = static_cast<S>(2.0 * kGeluScale), cubic = static_cast<S>(6.0 * kGeluScale * kGeluCubic);
    return s + u * s * (one - s) * (squares * cubic + slope);
  } else {
    const Reg<S> cdf = normal_cdf(u);
    if constexpr (!Derivative) return u * cdf;
    const Reg<S> bell = exp2_of(u * u * static_cast<S>(-0.5 * 1.4426950408889634));
    return cdf + u * bell * static_cast<S>(0.3989422804014327);
  }
}

template <class T, bool Past, bool Tanh> void bias_gelu_rows(const BiasGelu& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S* bias = static_cast<const S*>(a.bias);
  Ahead<1> next(0, static_cast<const T*>(a.x) + begin * a.columns);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.columns;
    T* out = static_cast<T*>(a.out) + row * a.columns;
    int64_t j = 0;
    for (; j + L <= a.columns; j += L) {
      store<Past>(out + j, gelu<S, Tanh, false>(load(x + j) + load(bias + j)));
      if (Past && starts_line<T>(j)) next.step();
    }
    if (j < a.columns) {
      const int64_t n = a.columns - j;
      store_part(out + j, n, gelu<S, Tanh, false>(load_part(x + j, n, S(0)) + load_part(bias + j, n, S(0))));
    }
  }
  if (Past) fence();
}

template <class T, bool Past, bool Tanh> void bias_gelu_backward_blocks(const BiasGelu& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S* bias = static_cast<const S*>(a.bias);
  for (int64_t block = begin; block < end; ++block) {
    S* sums = static_cast<S*>(a.partial) + block * a.columns;
    memset(sums, 0, a.columns * sizeof(S));
    const int64_t last = least(a.rows, (block + 1) * a.block), first = block * a.block * a.columns;
    Ahead<2> next(0, static_cast<const T*>(a.x) + first, static_cast<const T*>(a.grad) + first);
    for (int64_t row = block * a.block; row < last; ++row) {
      const T* x = static_cast<const T*>(a.x) + row * a.columns;
      const T* g = static_cast<const T*>(a.grad) + row * a.columns;
      T* out = static_cast<T*>(a.out) + row * a.columns;
      int64_t j = 0;
      for (; j + L <= a.columns; j += L) {
        const Reg<S> r = load(g + j) * gelu<S, Tanh, true>(load(x + j) + load(bias + j));
        store<false>(sums + j, load(sums + j) + r);
        store<Past>(out + j, r);
        if (Past && starts_line<T>(j)) next.step();
      }
      if (j < a.columns) {
        const int64_t n = a.columns - j;
        const Reg<S> u = load_part(x + j, n, S(0)) + load_part(bias + j, n, S(0));
        const Reg<S> r = load_part(g + j, n, S(0)) * gelu<S, Tanh, true>(u);
        store_part(sums + j, n, load_part(sums + j, n, S(0)) + r);
        store_part(out + j, n, r);
      }
    }
  }
  if (Past) fence();
}

// 32-bit products of the even lanes of a and of the odd ones with m: the high halves, and the low ones.
#if defined(__AVX512F__)
typedef uint32_t Words __attribute__((vector_size(64)));
inline void multiply(Words a, uint32_t m, Words* high, Words* low) {
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(m)), x = (__m512i)a;
  const __m512i even = _mm512_mul_epu32(x, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
  *high = (Words)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  *low = (Words)_mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}
#elif defined(__AVX2__)
typedef uint32_t Words __attribute__((vector_size(32)));
inline void multiply(Words a, uint32_t m, Words* high, Words* low) {
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(m)), x = (__m256i)a;
  const __m256i even = _mm256_mul_epu32(x, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
  *high = (Words)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  *low = (Words)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
#else
typedef uint32_t Words __attribute__((vector_size(16)));
inline void multiply(Words a, uint32_t m, Words* high, Words* low) {
  for (int i = 0; i < 4; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * m;
    (*high)[i] = static_cast<uint32_t>(product >> 32);
    (*low)[i] = static_cast<uint32_t>(product);
  }
}
#endif
constexpr int kWords = sizeof(Words) / 4;

// c[w] lane i: word w of Philox4x32-7 with counter first + i. Counters begin at multiples of a register's lanes, so that
// the high half is the same in all lanes.
inline void philox(uint64_t seed, uint64_t first, Words* c) {
  Words lane;
  for (int i = 0; i < kWords; ++i) lane[i] = i;
  c[0] = lane + static_cast<uint32_t>(first);
  c[1] = lane * 0 + static_cast<uint32_t>(first >> 32);
  c[2] = c[3] = lane * 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    Words high0, low0, high1, low1;
    multiply(c[0], 0xD2511F53u, &high0, &low0);
    multiply(c[2], 0xCD9E8D57u, &high1, &low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Elements of a span that is drawn at once: 4 words of each lane's counter.
constexpr int64_t kDraw = 4 * kWords;

// kept[4 i + w] = factor where word w of lane i is at least the threshold, else 0.
template <class S> inline void keep(const Words* c, uint32_t threshold, S factor, S* kept) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) {
    const __m512i limit = _mm512_set1_epi32(static_cast<int>(threshold));
    __m512 f[4];
    for (int w = 0; w < 4; ++w)
      f[w] = _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask((__m512i)c[w], limit), _mm512_set1_ps(factor));
    // A 4 x 16 transpose: pairs, then fours within 128 bits, then the 128-bit parts.
    const __m512d a = (__m512d)_mm512_unpacklo_ps(f[0], f[1]), b = (__m512d)_mm512_unpackhi_ps(f[0], f[1]);
    const __m512d d = (__m512d)_mm512_unpacklo_ps(f[2], f[3]), e = (__m512d)_mm512_unpackhi_ps(f[2], f[3]);
    const __m512 q0 = (__m512)_mm512_unpacklo_pd(a, d), q1 = (__m512)_mm512_unpackhi_pd(a, d);
    const __m512 q2 = (__m512)_mm512_unpacklo_pd(b, e), q3 = (__m512)_mm512_unpackhi_pd(b, e);
    const __m512 x0 = _mm512_shuffle_f32x4(q0, q1, 0x44), x1 = _mm512_shuffle_f32x4(q2, q3, 0x44);
    const __m512 x2 = _mm512_shuffle_f32x4(q0, q1, 0xee), x3 = _mm512_shuffle_f32x4(q2, q3, 0xee);
    _mm512_storeu_ps(kept, _mm512_shuffle_f32x4(x0, x1, 0x88));
    _mm512_storeu_ps(kept + 16, _mm512_shuffle_f32x4(x0, x1, 0xdd));
    _mm512_storeu_ps(kept + 32, _mm512_shuffle_f32x4(x2, x3, 0x88));
    _mm512_storeu_ps(kept + 48, _mm512_shuffle_f32x4(x2, x3, 0xdd));
    return;
  }
#endif
  for (int i = 0; i < kWords; ++i)
    for (int w = 0; w < 4; ++w) kept[4 * i + w] = c[w][i] >= threshold ? factor : S(0);
}

// `factor` where element [at, at + columns) of the tensor is kept, else 0. kept has room for 2 kDraw more elements.
template <class S> inline const S* keep_row(const Dropout& a, int64_t at, int64_t columns, S* kept) {
  const int64_t first = at / kDraw * kDraw;
  for (int64_t e = first; e < at + columns; e += kDraw) {
    Words c[4];
    philox(a.seed, static_cast<uint64_t>(e) / 4, c);
    keep<S>(c, a.threshold, static_cast<S>(a.factor), kept + (e - first));
  }
  return kept + (at - first);
}

template <class T, bool Past> void dropout_rows(const Dropout& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  constexpr int64_t kSpan = 1024;  // columns at a time: what is kept stays in the first cache
  S room[kSpan + 128];
  const S* bias = static_cast<const S*>(a.bias);
  const int64_t first = begin * a.columns;
  Ahead<2> next(0, static_cast<const T*>(a.x) + first, static_cast<const T*>(a.residual) + first);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t from = 0; from < a.columns; from += kSpan) {
      const int64_t at = row * a.columns + from, columns = least(kSpan, a.columns - from);
      const T* x = static_cast<const T*>(a.x) + at;
      const T* residual = static_cast<const T*>(a.residual) + at;
      T* out = static_cast<T*>(a.out) + at;
      const S* kept = a.drop ? keep_row<S>(a, at, columns, room) : nullptr;
      for (int64_t j = 0; j < columns; j += L) {
        const int64_t n = columns - j;
        Reg<S> r = load_up_to(x + j, n, S(0));
        if (bias) r += load_up_to(bias + from + j, n, S(0));
        if (kept) r *= load_up_to(kept + j, n, S(0));
        store_up_to<Past>(out + j, n, r + load_up_to(residual + j, n, S(0)));
        if (Past && starts_line<T>(j)) next.step();
      }
    }
  if (Past) fence();
}

template <class T, bool Past> void dropout_backward_blocks(const Dropout& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  constexpr int64_t kSpan = 1024;
  S room[kSpan + 128];
  for (int64_t block = begin; block < end; ++block) {
    S* sums = a.partial ? static_cast<S*>(a.partial) + block * a.columns : nullptr;
    if (sums) memset(sums, 0, a.columns * sizeof(S));
    const int64_t last = least(a.rows, (block + 1) * a.block);
    Ahead<1> next(0, static_cast<const T*>(a.x) + block * a.block * a.columns);
    for (int64_t row = block * a.block; row < last; ++row)
      for (int64_t from = 0; from < a.columns; from += kSpan) {
        const int64_t at = row * a.columns + from, columns = least(kSpan, a.columns - from);
        const T* g = static_cast<const T*>(a.x) + at;
        T* out = static_cast<T*>(a.out) + at;
        const S* kept = a.drop ? keep_row<S>(a, at, columns, room) : nullptr;
        for (int64_t j = 0; j < columns; j += L) {
          const int64_t n = columns - j;
          Reg<S> r = load_up_to(g + j, n, S(0));
          if (kept) r *= load_up_to(kept + j, n, S(0));
          if (sums) {
            if (n >= L) store<false>(sums + from + j, load(sums + from + j) + r);
            else store_part(sums + from + j, n, load_part(sums + from + j, n, S(0)) + r);
          }
          store_up_to<Past>(out + j, n, r);
          if (Past && starts_line<T>(j)) next.step();
        }
      }
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
