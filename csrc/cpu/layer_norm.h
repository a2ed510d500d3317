// LayerNorm with an optional residual addition before it. See megatron_slw/ops/layer_norm.py.
#pragma once

#include "vec.h"

namespace slw {
namespace SLW_ISA {

// Row sums in four registers, so that additions do not wait for each other; f(j, n) gives the n lanes at column j.
template <class S, class F> inline S sum_row(int64_t columns, F f) {
  constexpr int L = kLanes<S>;
  Reg<S> sums[4] = {};
  int64_t j = 0;
  for (; j + 4 * L <= columns; j += 4 * L)
    for (int k = 0; k < 4; ++k) sums[k] += f(j + k * L, int64_t(L));
  for (; j + L <= columns; j += L) sums[0] += f(j, int64_t(L));
  if (j < columns) sums[1] += f(j, columns - j);
  return sum_of<S>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T, bool Past, bool Add> void layer_norm_rows(const LayerNorm& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const int64_t columns = a.columns;
  const S* weight = static_cast<const S*>(a.weight);
  const S* bias = static_cast<const S*>(a.bias);
  Buffer<T> sums(Add && Past ? columns : 0);  // what is written past the caches is kept here for the later passes
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * columns;
    const T* x = static_cast<const T*>(a.x) + at;
    const int64_t ahead = row + 1 < end ? columns : 0;
    if constexpr (Add) {
      const T* residual = static_cast<const T*>(a.residual) + at;
      T* total = Past ? sums.data : static_cast<T*>(a.total) + at;
      int64_t j = 0;
      for (; j + L <= columns; j += L) store<false>(total + j, load(x + j) + load(residual + j));
      if (j < columns)
        store_part(total + j, columns - j,
                   load_part(x + j, columns - j, S(0)) + load_part(residual + j, columns - j, S(0)));
      x = total;
    }
    const S mean = sum_row<S>(columns, [&](int64_t j, int64_t n) { return load_up_to(x + j, n, S(0)); }) / columns;
    const Reg<S> means = splat<S>(mean);
    const T* next = static_cast<const T*>(a.x) + at + ahead;
    const S squares = sum_row<S>(columns, [&](int64_t j, int64_t n) {
      const Reg<S> centred = load_up_to(x + j, n, mean) - means;
      prefetch(next + j);
      return centred * centred;
    });
    const S rstd = S(1) / static_cast<S>(sqrt(static_cast<double>(squares / columns + static_cast<S>(a.eps))));
    static_cast<S*>(a.mean)[row] = mean;
    static_cast<S*>(a.rstd)[row] = rstd;
    const Reg<S> factor = splat<S>(rstd);
    T* y = static_cast<T*>(a.y) + at;
    int64_t j = 0;
    for (; j + L <= columns; j += L) {
      const Reg<S> value = load(x + j);
      if constexpr (Add && Past) store<true>(static_cast<T*>(a.total) + at + j, value);
      store<Past>(y + j, (value - means) * factor * load(weight + j) + load(bias + j));
    }
    if (j < columns) {
      const int64_t n = columns - j;
      const Reg<S> normal = (load_part(x + j, n, S(0)) - means) * factor;
      store_part(y + j, n, normal * load_part(weight + j, n, S(0)) + load_part(bias + j, n, S(0)));
    }
  }
  if (Past) fence();
}

// Gradient of the weight and of the bias for `count` rows, added to sums[0, C) and sums[C, 2C); and each row's
// sum(grad w xhat) and sum(grad w), which the second pass needs. Several rows at once share the traffic of the sums.
// This pass touches x of the rows `ahead`, the second one their gradient: memory is read all the time.
template <class T, int Rows>
inline void layer_norm_sums(
    const LayerNorm& a, int64_t row, int64_t ahead, Wide<T>* sums, Wide<T>* along, Wide<T>* plain) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const int64_t columns = a.columns;
  const T* x = static_cast<const T*>(a.x) + row * columns;
  const T* g = static_cast<const T*>(a.grad) + row * columns;
  const S* weight = static_cast<const S*>(a.weight);
  Reg<S> means[Rows], rstds[Rows], with[Rows] = {}, without[Rows] = {};
  for (int r = 0; r < Rows; ++r) {
    means[r] = splat<S>(static_cast<const S*>(a.mean)[row + r]);
    rstds[r] = splat<S>(static_cast<const S*>(a.rstd)[row + r]);
  }
  int64_t j = 0;
  for (; j + L <= columns; j += L) {
    const Reg<S> w = load(weight + j);
    Reg<S> of_weight = load(sums + j), of_bias = load(sums + columns + j);
    for (int r = 0; r < Rows; ++r) {
      const Reg<S> grad = load(g + r * columns + j);
      prefetch(x + r * columns + j + ahead);
      const Reg<S> normal = (load(x + r * columns + j) - means[r]) * rstds[r];
      of_weight += grad * normal;
      of_bias += grad;
      const Reg<S> scaled = grad * w;
      with[r] += scaled * normal;
      without[r] += scaled;
    }
    store<false>(sums + j, of_weight);
    store<false>(sums + columns + j, of_bias);
  }
  if (j < columns) {
    const int64_t n = columns - j;
    const Reg<S> w = load_part(weight + j, n, S(0));
    Reg<S> of_weight = load_part(sums + j, n, S(0)), of_bias = load_part(sums + columns + j, n, S(0));
    for (int r = 0; r < Rows; ++r) {
      const Reg<S> grad = load_part(g + r * columns + j, n, S(0));
      const Reg<S> normal = (load_part(x + r * columns + j, n, S(0)) - means[r]) * rstds[r];
      of_weight += grad * normal;
      of_bias += grad;
      with[r] += grad * w * normal;
      without[r] += grad * w;
    }
    store_part(sums + j, n, of_weight);
    store_part(sums + columns + j, n, of_bias);
  }
  for (int r = 0; r < Rows; ++r) {
    along[r] = sum_of<S>(with[r]) / columns;
    plain[r] = sum_of<S>(without[r]) / columns;
  }
}

template <class T, bool Past, bool Add>
inline void layer_norm_grad_row(const LayerNorm& a, int64_t row, int64_t ahead, Wide<T> along, Wide<T> plain) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const int64_t columns = a.columns, at = row * columns;
  const T* x = static_cast<const T*>(a.x) + at;
  const T* g = static_cast<const T*>(a.grad) + at;
  const T* more = Add ? static_cast<const T*>(a.grad_total) + at : nullptr;
  const S* weight = static_cast<const S*>(a.weight);
  const S mean = static_cast<const S*>(a.mean)[row], rstd = static_cast<const S*>(a.rstd)[row];
  // rstd (g w - plain - xhat along) = g (w rstd) - x (along rstd^2) + (mean rstd along - plain) rstd would cancel where
  // the mean is large, so x - mean is formed first.
  const Reg<S> means = splat<S>(mean), rstds = splat<S>(rstd), shift = splat<S>(plain * rstd);
  const Reg<S> slope = splat<S>(along * rstd * rstd);
  T* out = static_cast<T*>(a.y) + at;
  int64_t j = 0;
  for (; j + L <= columns; j += L) {
    Reg<S> r = load(g + j) * load(weight + j) * rstds - shift - (load(x + j) - means) * slope;
    if constexpr (Add) r += load(more + j);
    prefetch(g + j + ahead);
    store<Past>(out + j, r);
  }
  if (j < columns) {
    const int64_t n = columns - j;
    Reg<S> r = load_part(g + j, n, S(0)) * load_part(weight + j, n, S(0)) * rstds - shift;
    r -= (load_part(x + j, n, S(0)) - means) * slope;
    if constexpr (Add) r += load_part(more + j, n, S(0));
    store_part(out + j, n, r);
  }
}

// Blocks [begin, end) of a.block rows; each block has sums of its own, whatever thread computes it.
template <class T, bool Past, bool Add> void layer_norm_backward_blocks(const LayerNorm& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int kRows = 4;
  for (int64_t block = begin; block < end; ++block) {
    S* sums = static_cast<S*>(a.partial) + block * 2 * a.columns;
    memset(sums, 0, 2 * a.columns * sizeof(S));
    const int64_t last = least(a.rows, (block + 1) * a.block);
    S along[kRows], plain[kRows];
    int64_t row = block * a.block;
    for (; row + kRows <= last; row += kRows) {
      const int64_t ahead = row + 2 * kRows <= last ? kRows * a.columns : 0;
      layer_norm_sums<T, kRows>(a, row, ahead, sums, along, plain);
      for (int r = 0; r < kRows; ++r) layer_norm_grad_row<T, Past, Add>(a, row + r, ahead, along[r], plain[r]);
    }
    for (; row < last; ++row) {
      layer_norm_sums<T, 1>(a, row, 0, sums, along, plain);
      layer_norm_grad_row<T, Past, Add>(a, row, 0, along[0], plain[0]);
    }
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
