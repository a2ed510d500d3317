// LayerNorm with an optional residual addition before it. See megatron_slw/ops/layer_norm.py.
#pragma once

#include "ahead.h"

namespace slw {
namespace SLW_ISA {

// f(column, lanes) for the registers of a row: the last one may be a part.
template <class S, class F> inline void along(int64_t columns, F f) {
  constexpr int L = kLanes<S>;
  int64_t j = 0;
  for (; j + L <= columns; j += L) f(j, int64_t(L));
  if (j < columns) f(j, columns - j);
}

// Rows whose mean is known: they are normalised while the next ones are read, so that memory is read and written at
// the same time. `x` is null where there are none.
template <class T, int Rows> struct Normal {
  const T* x = nullptr;
  T* y = nullptr;
  Reg<Wide<T>> means[Rows] = {}, factors[Rows] = {};
};

// One step: the sums of the rows `now` (x + residual where Add, kept in `total`), rows `before` normalised. Several rows
// at once are as many streams to and from memory.
template <class T, bool Past, bool Add, int Rows>
inline void layer_norm_step(
    const LayerNorm& a, int64_t row, bool reads, Ahead<1 + Add>& ahead, T* kept, const Normal<T, Rows>& before,
    Reg<Wide<T>>* sums) {
  using S = Wide<T>;
  const int64_t columns = a.columns, at = row * columns;
  const T* x = static_cast<const T*>(a.x) + at;
  const T* residual = Add ? static_cast<const T*>(a.residual) + at : nullptr;
  T* total = Add ? static_cast<T*>(a.total) + at : nullptr;
  const S *weight = static_cast<const S*>(a.weight), *bias = static_cast<const S*>(a.bias);
  Reg<S> own[Rows] = {};  // in registers: through the pointer they would be stored each time
  Ahead<1 + Add> next = ahead;
  along<S>(columns, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    if (before.x) {
      const Reg<S> w = load_up_to(weight + j, n, S(0)), b = load_up_to(bias + j, n, S(0));
      for (int r = 0; r < Rows; ++r) {
        const Reg<S> normal = (load_up_to(before.x + r * columns + j, n, S(0)) - before.means[r]) * before.factors[r];
        store_up_to<Past>(before.y + r * columns + j, n, normal * w + b);
      }
    }
    if (!reads) return;
    for (int r = 0; r < Rows; ++r) {
      const int64_t i = r * columns + j;
      Reg<S> value = load_up_to(x + i, n, S(0));
      if (Past && starts_line<T>(j)) next.step();
      if constexpr (Add) {
        value += load_up_to(residual + i, n, S(0));
        if (Past) store_up_to<true>(total + i, n, value);
        store_up_to<false>(kept + i, n, value);
        if constexpr (sizeof(T) < sizeof(S)) value = load_up_to(kept + i, n, S(0));  // as it was rounded
      }
      own[r] += value;
    }
  });
  ahead = next;
  for (int r = 0; r < Rows; ++r) sums[r] = own[r];
}

// The mean and the reciprocal standard deviation of the rows that were summed.
template <class T, int Rows>
inline void layer_norm_moments(
    const LayerNorm& a, int64_t row, const T* x, const Reg<Wide<T>>* sums, Normal<T, Rows>& out) {
  using S = Wide<T>;
  Reg<S> squares[Rows] = {};
  S means[Rows];
  for (int r = 0; r < Rows; ++r) {
    means[r] = sum_of<S>(sums[r]) / a.columns;
    out.means[r] = splat<S>(means[r]);
  }
  along<S>(a.columns, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    for (int r = 0; r < Rows; ++r) {
      const Reg<S> centred = load_up_to(x + r * a.columns + j, n, means[r]) - out.means[r];
      squares[r] += centred * centred;
    }
  });
  for (int r = 0; r < Rows; ++r) {
    const S variance = sum_of<S>(squares[r]) / a.columns;
    const S rstd = S(1) / static_cast<S>(sqrt(static_cast<double>(variance + static_cast<S>(a.eps))));
    static_cast<S*>(a.mean)[row + r] = means[r];
    static_cast<S*>(a.rstd)[row + r] = rstd;
    out.factors[r] = splat<S>(rstd);
  }
}

// Rows [begin, end) by so many at once; gives the first of those that are left.
template <class T, bool Past, bool Add, int Rows>
inline int64_t layer_norm_span(const LayerNorm& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  const int64_t step = Rows * a.columns, last = begin + (end - begin) / Rows * Rows;
  Buffer<T> room(Add && Past ? 2 * step : 0);  // what is written past the caches is kept here for the later passes
  Normal<T, Rows> before;
  const T* x0 = static_cast<const T*>(a.x) + begin * a.columns;
  auto ahead = [&] {
    if constexpr (Add) return Ahead<2>(step * sizeof(T), x0, static_cast<const T*>(a.residual) + begin * a.columns);
    else return Ahead<1>(step * sizeof(T), x0);
  }();
  for (int64_t row = begin; row <= last && (row < last || before.x); row += Rows) {
    const T* x = static_cast<const T*>(Add ? a.total : a.x) + row * a.columns;
    T* kept = nullptr;
    if constexpr (Add) {
      kept = Past ? room.data + (row - begin) / Rows % 2 * step : static_cast<T*>(a.total) + row * a.columns;
      x = kept;
    }
    Reg<S> sums[Rows] = {};
    layer_norm_step<T, Past, Add, Rows>(a, row, row < last, ahead, kept, before, sums);
    before.x = nullptr;
    if (row == last) break;
    layer_norm_moments<T, Rows>(a, row, x, sums, before);
    before.x = x;
    before.y = static_cast<T*>(a.y) + row * a.columns;
  }
  return last;
}

template <class T, bool Past, bool Add> void layer_norm_rows(const LayerNorm& a, int64_t begin, int64_t end) {
  // Out of the caches four rows at once are faster only where they are long and one array is read; every row's sums are
  // the same either way.
  if (!Past || (!Add && a.columns > 512)) begin = layer_norm_span<T, Past, Add, 4>(a, begin, end);
  layer_norm_span<T, Past, Add, 1>(a, begin, end);
  if (Past) fence();
}

// What the gradient of a row needs: sum(grad w xhat) / C and sum(grad w) / C.
template <class T, int Rows> struct GradSums {
  int64_t row = -1;  // none
  Wide<T> with[Rows], plain[Rows];
};

// One step of the backward pass. Of rows [row, row + Rows) the gradient of the weight and of the bias is added to
// sums[0, C) and sums[C, 2C): several rows at once share that traffic. Of the rows before, whose sums are known, the
// gradient is written:
// rstd (g w - plain - xhat with) = g (w rstd) - x (with rstd^2) + (mean rstd with - plain) rstd would cancel where the
// mean is large, so x - mean is formed first.
template <class T, bool Past, bool Add, int Rows>
inline void layer_norm_backward_step(
    const LayerNorm& a, const GradSums<T, Rows>& before, GradSums<T, Rows>& now, Ahead<2>& ahead, Wide<T>* sums) {
  using S = Wide<T>;
  const int64_t columns = a.columns;
  const T *all_x = static_cast<const T*>(a.x), *all_g = static_cast<const T*>(a.grad);
  const T *x = all_x + now.row * columns, *g = all_g + now.row * columns;
  const int64_t done = before.row * columns;
  const S *weight = static_cast<const S*>(a.weight), *all_mean = static_cast<const S*>(a.mean);
  const S* all_rstd = static_cast<const S*>(a.rstd);
  Reg<S> means[Rows], rstds[Rows], with[Rows] = {}, plain[Rows] = {};
  S old_mean[Rows], old_rstd[Rows], shift[Rows], slope[Rows];
  Ahead<2> next = ahead;
  for (int r = 0; r < Rows; ++r) {
    if (now.row >= 0) means[r] = splat<S>(all_mean[now.row + r]);
    if (now.row >= 0) rstds[r] = splat<S>(all_rstd[now.row + r]);
    if (before.row < 0) continue;
    old_mean[r] = all_mean[before.row + r];
    old_rstd[r] = all_rstd[before.row + r];
    shift[r] = before.plain[r] * old_rstd[r];
    slope[r] = before.with[r] * old_rstd[r] * old_rstd[r];
  }
  along<S>(columns, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    const Reg<S> w = load_up_to(weight + j, n, S(0));
    if (before.row >= 0)
      for (int r = 0; r < Rows; ++r) {
        const int64_t i = done + r * columns + j;
        Reg<S> result = load_up_to(all_g + i, n, S(0)) * w * splat<S>(old_rstd[r]) - splat<S>(shift[r]);
        result -= (load_up_to(all_x + i, n, S(0)) - splat<S>(old_mean[r])) * splat<S>(slope[r]);
        if constexpr (Add) result += load_up_to(static_cast<const T*>(a.grad_total) + i, n, S(0));
        store_up_to<Past>(static_cast<T*>(a.y) + i, n, result);
      }
    if (now.row < 0) return;
    Reg<S> of_weight = load_up_to(sums + j, n, S(0)), of_bias = load_up_to(sums + columns + j, n, S(0));
    for (int r = 0; r < Rows; ++r) {
      const int64_t i = r * columns + j;
      const Reg<S> grad = load_up_to(g + i, n, S(0)), scaled = grad * w;
      const Reg<S> normal = (load_up_to(x + i, n, S(0)) - means[r]) * rstds[r];
      if (Past && starts_line<T>(j)) next.step();
      of_weight += grad * normal;
      of_bias += grad;
      with[r] += scaled * normal;
      plain[r] += scaled;
    }
    store_up_to<false>(sums + j, n, of_weight);
    store_up_to<false>(sums + columns + j, n, of_bias);
  });
  ahead = next;
  if (now.row < 0) return;
  for (int r = 0; r < Rows; ++r) {
    now.with[r] = sum_of<S>(with[r]) / columns;
    now.plain[r] = sum_of<S>(plain[r]) / columns;
  }
}

template <class T, bool Past, bool Add, int Rows>
inline int64_t layer_norm_backward_span(const LayerNorm& a, int64_t begin, int64_t end, Wide<T>* sums) {
  const int64_t last = begin + (end - begin) / Rows * Rows;
  GradSums<T, Rows> before, now;
  Ahead<2> ahead(Rows * a.columns * sizeof(T), static_cast<const T*>(a.grad) + begin * a.columns,
                 static_cast<const T*>(a.x) + begin * a.columns);
  for (int64_t row = begin; row < last; row += Rows) {
    now.row = row;
    layer_norm_backward_step<T, Past, Add, Rows>(a, before, now, ahead, sums);
    before = now;
  }
  now.row = -1;
  if (before.row >= 0) layer_norm_backward_step<T, Past, Add, Rows>(a, before, now, ahead, sums);
  return last;
}

// Blocks [begin, end) of a.block rows; each block has sums of its own, whatever thread computes it.
template <class T, bool Past, bool Add> void layer_norm_backward_blocks(const LayerNorm& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  for (int64_t block = begin; block < end; ++block) {
    S* sums = static_cast<S*>(a.partial) + block * 2 * a.columns;
    memset(sums, 0, 2 * a.columns * sizeof(S));
    const int64_t last = least(a.rows, (block + 1) * a.block);
    int64_t rest = block * a.block;
    if (!Past) rest = layer_norm_backward_span<T, Past, Add, 4>(a, rest, last, sums);
    layer_norm_backward_span<T, Past, Add, 1>(a, rest, last, sums);
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
