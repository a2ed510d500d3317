// Cross-entropy over the columns of one rank. See megatron_slw/ops/cross_entropy.py.
#pragma once

#include "ahead.h"
#include "softmax.h"

namespace slw {
namespace SLW_ISA {

// Maximum and sum of exp(x - maximum) of each row, reading it once: block by block, the sum rescaled where the maximum
// rises. A block stays in the first cache between its two passes.
template <class T> void cross_entropy_rows(const CrossEntropy& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  constexpr int64_t kBlock = 2048;
  const S low = static_cast<S>(-INFINITY), log2e = static_cast<S>(kLog2e);
  Ahead<1> next(kBlock * sizeof(T), static_cast<const T*>(a.logits) + begin * a.row_stride);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.logits) + row * a.row_stride;
    S top = low, total = 0;
    for (int64_t from = 0; from < a.columns; from += kBlock) {
      const int64_t to = least(a.columns, from + kBlock);
      Reg<S> high[4] = {splat<S>(top), splat<S>(top), splat<S>(top), splat<S>(top)};
      int64_t j = from;
      for (; j + 4 * L <= to; j += 4 * L)
        for (int k = 0; k < 4; ++k) high[k] = larger<S>(high[k], load(x + j + k * L));
      for (; j < to; j += L) high[0] = larger<S>(high[0], load_up_to(x + j, to - j, low));
      const S highest = max_of<S>(larger<S>(larger<S>(high[0], high[1]), larger<S>(high[2], high[3])));
      if (highest == low) continue;
      Reg<S> sums[4] = {};
      const Reg<S> offset = splat<S>(highest);
      for (j = from; j + 4 * L <= to; j += 4 * L)
        for (int k = 0; k < 4; ++k) {
          sums[k] += exp2_of((load(x + j + k * L) - offset) * log2e);
          if (starts_line<T>(j + k * L)) next.step();
        }
      for (; j < to; j += L) sums[0] += exp2_of((load_up_to(x + j, to - j, low) - offset) * log2e);
      const S before = top == low ? S(0) : exp2_of(splat<S>((top - highest) * log2e))[0];
      total = total * before + sum_of<S>((sums[0] + sums[1]) + (sums[2] + sums[3]));
      top = highest;
    }
    static_cast<S*>(a.top)[row] = top;
    static_cast<S*>(a.total)[row] = total;
    const int64_t column = a.labels[row] - a.start;
    static_cast<S*>(a.target)[row] = column >= 0 && column < a.columns ? widen(x[column]) : S(0);
  }
}

// (exp(x - top) / total - 1 at the label) x grad
template <class T, bool Past> void cross_entropy_backward_rows(const CrossEntropy& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S log2e = static_cast<S>(kLog2e);
  Ahead<1> next(0, static_cast<const T*>(a.logits) + begin * a.row_stride);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.logits) + row * a.row_stride;
    T* out = static_cast<T*>(a.out) + row * a.width;
    const S top = static_cast<const S*>(a.top)[row], grad = static_cast<const S*>(a.grad)[row];
    const S share = grad / static_cast<const S*>(a.total)[row];
    const Reg<S> offset = splat<S>(top), factor = splat<S>(share);
    const int64_t column = a.labels[row] - a.start;
    const int64_t special = column >= 0 && column < a.columns ? column / L * L : -1;
    for (int64_t j = 0; j < a.columns; j += L) {
      Reg<S> r = exp2_of((load_up_to(x + j, a.columns - j, top) - offset) * log2e) * factor;
      if (j == special) r[column - j] -= grad;
      if (Past && starts_line<T>(j)) next.step();
      store_up_to<Past>(out + j, a.columns - j, r);
    }
    for (int64_t j = a.columns; j < a.width; ++j) out[j] = T{};
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
