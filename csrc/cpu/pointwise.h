// bias + GELU, and bias + dropout + residual. See megatron_slw/ops/bias_gelu.py and dropout_residual.py.
#pragma once

#include "vec.h"

namespace slw {
namespace SLW_ISA {

constexpr double kGeluScale = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluCubic = 0.044715;

inline Reg<float> normal_cdf(Reg<float> u, Reg<float> bell) {
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
  const Reg<float> half_tail = 0.5f * t * exp2_of(q * 1.44269504f) * bell;
  return u < 0.0f ? half_tail : 1.0f - half_tail;
}
inline Reg<double> normal_cdf(Reg<double> u, Reg<double>) {
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
    const Reg<S> bell = exp2_of(u * u * static_cast<S>(-0.5 * 1.4426950408889634));
    const Reg<S> cdf = normal_cdf(u, bell);
    if constexpr (!Derivative) return u * cdf;
    return cdf + u * bell * static_cast<S>(0.3989422804014327);
  }
}

template <class T, bool Past, bool Tanh> void bias_gelu_rows(const BiasGelu& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S* bias = static_cast<const S*>(a.bias);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.columns;
    T* out = static_cast<T*>(a.out) + row * a.columns;
    int64_t j = 0;
    for (; j + L <= a.columns; j += L) store<Past>(out + j, gelu<S, Tanh, false>(load(x + j) + load(bias + j)));
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
    const int64_t last = least(a.rows, (block + 1) * a.block);
    for (int64_t row = block * a.block; row < last; ++row) {
      const T* x = static_cast<const T*>(a.x) + row * a.columns;
      const T* g = static_cast<const T*>(a.grad) + row * a.columns;
      T* out = static_cast<T*>(a.out) + row * a.columns;
      int64_t j = 0;
      for (; j + L <= a.columns; j += L) {
        const Reg<S> r = load(g + j) * gelu<S, Tanh, true>(load(x + j) + load(bias + j));
        store<false>(sums + j, load(sums + j) + r);
        store<Past>(out + j, r);
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

// 64 words of Philox4x32-7 from counter `first`: word e % 4 of counter e / 4, in the order of e.
inline void philox(uint64_t seed, uint64_t first, uint32_t* words) {
  constexpr int N = 16;
  uint32_t c0[N], c1[N], c2[N], c3[N];
  for (int i = 0; i < N; ++i) {
    c0[i] = static_cast<uint32_t>(first + i);
    c1[i] = static_cast<uint32_t>((first + i) >> 32);
    c2[i] = c3[i] = 0;
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    for (int i = 0; i < N; ++i) {
      const uint64_t p0 = static_cast<uint64_t>(c0[i]) * 0xD2511F53u, p1 = static_cast<uint64_t>(c2[i]) * 0xCD9E8D57u;
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c1[i] = static_cast<uint32_t>(p1);
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < N; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

// `factor` where element [at, at + columns) of the tensor is kept, else 0. kept has room for 64 more on either side.
template <class S> inline const S* keep_row(const Dropout& a, int64_t at, int64_t columns, S* kept) {
  const int64_t first = at / 64 * 64;
  const S factor = static_cast<S>(a.factor);
  for (int64_t e = first; e < at + columns; e += 64) {
    uint32_t words[64];
    philox(a.seed, static_cast<uint64_t>(e) / 4, words);
    S* here = kept + (e - first);
    for (int i = 0; i < 64; ++i) here[i] = words[i] >= a.threshold ? factor : S(0);
  }
  return kept + (at - first);
}

template <class T, bool Past> void dropout_rows(const Dropout& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  constexpr int64_t kSpan = 1024;  // columns at a time: what is kept stays in the first cache
  S room[kSpan + 128];
  const S* bias = static_cast<const S*>(a.bias);
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
        }
      }
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
