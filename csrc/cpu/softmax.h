// Softmax over the keys that a query sees. See megatron_slw/ops/softmax.py.
#pragma once

#include "vec.h"

namespace slw {
namespace SLW_ISA {

constexpr double kLog2e = 1.4426950408889634;

struct Range { int64_t first, last; };  // keys [first, last) are seen

inline Range seen_range(const Softmax& a, int64_t row) {
  const int64_t query = row % a.queries;
  Range r{0, query + a.keys - a.queries + 1};
  if (a.first) r.first = most(0, least(a.first[row / a.rows_per_batch * a.queries + query], r.last));
  return r;
}

template <bool Past, class T> inline void zeros(T* out, int64_t from, int64_t to) {
  constexpr int L = kLanes<Wide<T>>;
  const Reg<Wide<T>> zero = {};
  int64_t j = from;
  for (; j + L <= to; j += L) store<Past>(out + j, zero);
  if (j < to) store_part(out + j, to - j, zero);
}

// out[from, to) = 2^(factor x - highest) / sum, 0 elsewhere in [0, keys). `ahead` is touched on the way: the next row,
// whose loads then overlap with the arithmetic of this one. The product is never rounded where there is a fused
// multiply-add: scores of any size keep the precision of their differences.
template <bool Past, class X, class T>
inline void softmax_row(
    const X* x, Wide<T> factor, Wide<T>* buffer, T* out, int64_t from, int64_t to, int64_t keys, const char* ahead) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S low = static_cast<S>(-INFINITY), past = factor < 0 ? -low : low;  // reads as 2^-infinity = 0
  const Reg<S> factors = splat<S>(factor), lowest = splat<S>(low);
  Reg<S> high[4] = {lowest, lowest, lowest, lowest};
  int64_t j = from;
  for (; j + 4 * L <= to; j += 4 * L)
    for (int k = 0; k < 4; ++k) high[k] = larger<S>(high[k], load(x + j + k * L) * factors);
  for (; j + L <= to; j += L) high[0] = larger<S>(high[0], load(x + j) * factors);
  if (j < to) high[1] = larger<S>(high[1], load_part(x + j, to - j, past) * factors);
  const S top = max_of<S>(larger<S>(larger<S>(high[0], high[1]), larger<S>(high[2], high[3])));
  if (from >= to || top == low) return zeros<Past>(out, 0, keys);
  Reg<S> sums[4] = {};
  const Reg<S> offset = splat<S>(top);
  for (j = from; j + 4 * L <= to; j += 4 * L)
    for (int k = 0; k < 4; ++k) {
      const Reg<S> e = exp2_of(load(x + j + k * L) * factors - offset);
      store<false>(buffer + j + k * L, e);
      sums[k] += e;
      if (sizeof(T) == sizeof(S) || k % 2 == 0) prefetch(ahead + (j + k * L) * sizeof(T));
    }
  for (; j < to; j += L) {
    const Reg<S> e = exp2_of(load_up_to(x + j, to - j, past) * factors - offset);
    store<false>(buffer + j, e);
    sums[0] += e;
    prefetch(ahead + j * sizeof(T));
  }
  const Reg<S> share = splat<S>(S(1) / sum_of<S>((sums[0] + sums[1]) + (sums[2] + sums[3])));
  // Registers of the output begin at multiples of L, so that it can be written past the caches.
  const int64_t left = from / L * L, right = (to + L - 1) / L * L;
  for (j = left; j < from; ++j) buffer[j] = 0;
  for (j = to; j < right; ++j) buffer[j] = 0;
  zeros<Past>(out, 0, left);
  for (j = left; j < right && j + L <= keys; j += L) store<Past>(out + j, load(buffer + j) * share);
  if (j < right) store_part(out + j, keys - j, load(buffer + j) * share);
  else zeros<Past>(out, right, keys);
}

// The same for at most N registers of keys, none of them stored in between.
template <int N, class T>
inline void short_row(const T* x, Wide<T> factor, T* out, int64_t from, int64_t to, int64_t keys) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S low = static_cast<S>(-INFINITY);
  const Reg<S> factors = splat<S>(factor), hidden = splat<S>(low);
  Reg<S> raw[N], high = hidden;
  for (int k = 0; k < N; ++k) {
    // A masked score is replaced before it is used: it may be anything.
    raw[k] = load_up_to(x + k * L, most(0, keys - k * L), S(0));
    Reg<S> scaled = only_before<S>(raw[k] * factors, k * L, to, low);
    if (from > k * L) scaled = only_from<S>(scaled, k * L, from, low);
    high = larger<S>(high, scaled);
  }
  const S top = max_of<S>(high);
  if (from >= to || top == low) return zeros<false>(out, 0, keys);
  const Reg<S> offset = splat<S>(top);
  Reg<S> sum = {};
  for (int k = 0; k < N; ++k) {
    raw[k] = only_before<S>(exp2_of(raw[k] * factors - offset), k * L, to, S(0));
    if (from > k * L) raw[k] = only_from<S>(raw[k], k * L, from, S(0));
    sum += raw[k];
  }
  const Reg<S> share = splat<S>(S(1) / sum_of<S>(sum));
  for (int k = 0; k < N; ++k) store_up_to<false>(out + k * L, most(0, keys - k * L), raw[k] * share);
}

template <int N, class T> void short_causal_rows(const Softmax& a, int64_t begin, int64_t end) {
  const Wide<T> factor = static_cast<Wide<T>>(a.scale * kLog2e);
  for (int64_t row = begin; row < end; ++row) {
    const Range seen = seen_range(a, row);
    const int64_t at = row * a.keys;
    short_row<N>(static_cast<const T*>(a.x) + at, factor, static_cast<T*>(a.out) + at, seen.first, seen.last, a.keys);
  }
}

// A row at a time.
template <class T, bool Past> void causal_rows(const Softmax& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  if (a.keys <= kLanes<S>) return short_causal_rows<1, T>(a, begin, end);
  if (a.keys <= 2 * kLanes<S>) return short_causal_rows<2, T>(a, begin, end);
  if (a.keys <= 4 * kLanes<S>) return short_causal_rows<4, T>(a, begin, end);
  if (a.keys <= 8 * kLanes<S>) return short_causal_rows<8, T>(a, begin, end);
  Buffer<S> buffer(a.keys + 2 * kLanes<S>);
  const S factor = static_cast<S>(a.scale * kLog2e);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.keys;
    const Range seen = seen_range(a, row);
    const char* ahead = reinterpret_cast<const char*>(row + 1 < end ? x + a.keys : x);
    T* out = static_cast<T*>(a.out) + row * a.keys;
    softmax_row<Past>(x, factor, buffer.data, out, seen.first, seen.last, a.keys, ahead);
  }
  if (Past) fence();
}

template <class T, bool Past> void masked_rows(const Softmax& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  Buffer<S> scores(a.keys + 2 * kLanes<S>), buffer(a.keys + 2 * kLanes<S>);
  const S factor = static_cast<S>(a.scale * kLog2e);
  const S hidden = static_cast<S>(factor < 0 ? INFINITY : -INFINITY);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.keys;
    const bool* seen = a.seen;
    int64_t rest = row;
    for (int64_t d = a.seen_dims - 1; d >= 0; --d) {
      seen += rest % a.seen_sizes[d] * a.seen_strides[d];
      rest /= a.seen_sizes[d];
    }
    if (a.seen_stride == 1) {
      for (int64_t j = 0; j < a.keys; ++j) scores.data[j] = seen[j] ? widen(x[j]) : hidden;
    } else {
      for (int64_t j = 0; j < a.keys; ++j) scores.data[j] = seen[j * a.seen_stride] ? widen(x[j]) : hidden;
    }
    T* out = static_cast<T*>(a.out) + row * a.keys;
    const char* ahead = reinterpret_cast<const char*>(row + 1 < end ? x + a.keys : x);
    softmax_row<Past>(scores.data, factor, buffer.data, out, 0, a.keys, a.keys, ahead);
  }
  if (Past) fence();
}

// out = scale x y x (grad - sum(grad x y)). Where a key is not seen neither is read, and out is 0.
template <class T, bool Past> void causal_backward_rows(const Softmax& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const Reg<S> scale = splat<S>(static_cast<S>(a.scale));
  for (int64_t row = begin; row < end; ++row) {
    const T* g = static_cast<const T*>(a.x) + row * a.keys;
    const T* y = static_cast<const T*>(a.y) + row * a.keys;
    T* out = static_cast<T*>(a.out) + row * a.keys;
    const Range seen = seen_range(a, row);
    const int64_t ahead = row + 1 < end ? a.keys : 0;
    // Registers begin at multiples of L, so that out can be written past the caches.
    const int64_t left = seen.first / L * L;
    Reg<S> sums[4] = {};
    int64_t j = left;
    if (j < seen.first) {
      for (int64_t i = seen.first; i < least(left + L, seen.last); ++i) sums[0][0] += widen(g[i]) * widen(y[i]);
      j = left + L;
    }
    for (; j + 4 * L <= seen.last; j += 4 * L)
      for (int k = 0; k < 4; ++k) {
        sums[k] += load(g + j + k * L) * load(y + j + k * L);
        prefetch(g + ahead + j + k * L);
        prefetch(y + ahead + j + k * L);
      }
    for (; j + L <= seen.last; j += L) sums[0] += load(g + j) * load(y + j);
    if (j < seen.last) sums[1] += load_part(g + j, seen.last - j, S(0)) * load_part(y + j, seen.last - j, S(0));
    const S dot = sum_of<S>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    const Reg<S> offset = splat<S>(dot);
    zeros<Past>(out, 0, left);
    j = left;
    if (j < seen.first) {
      Reg<S> r = {};
      for (int64_t i = seen.first; i < least(left + L, seen.last); ++i)
        r[i - left] = static_cast<S>(a.scale) * widen(y[i]) * (widen(g[i]) - dot);
      store_up_to<Past>(out + j, a.keys - j, r);
      j = left + L;
    }
    for (; j + L <= seen.last; j += L) store<Past>(out + j, load(y + j) * scale * (load(g + j) - offset));
    if (j < seen.last) {
      const Reg<S> part = load_part(y + j, seen.last - j, S(0)) * scale;
      store_up_to<Past>(out + j, a.keys - j, part * (load_part(g + j, seen.last - j, S(0)) - offset));
      j += L;
    }
    if (j < a.keys) zeros<Past>(out, j, a.keys);
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
