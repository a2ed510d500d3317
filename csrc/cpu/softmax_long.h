// Causal softmax over rows of more registers than there are: what was computed of a row waits in the first cache.
#pragma once

#include "causal_ahead.h"
#include "softmax.h"

namespace slw {
namespace SLW_ISA {

// Whether as many lines as there are streams begin with the four registers at column j.
template <class T> inline bool turns(int64_t j) {
  constexpr int64_t registers = most(4, kStreams * kLine / int64_t(kLanes<Wide<T>> * sizeof(T)));
  return j / kLanes<Wide<T>> % registers == 0;
}

// out[0, keys) = value(j, n), a register from column j of which n lanes count, where keys are seen, and zeros. Rows may
// begin anywhere; past the caches registers begin at their multiples in memory.
template <bool Past, class T, class F> inline void put_row(T* out, int64_t seen, int64_t keys, F value) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  int64_t j = 0;
  if constexpr (Past) {
    j = least(keys, (-reinterpret_cast<uintptr_t>(out) & (L * sizeof(T) - 1)) / sizeof(T));
    if (j) store_part(out, j, value(0, most(0, least(j, seen))));
  }
#pragma GCC unroll 2
  for (; j + L <= seen; j += L) store<Past>(out + j, value(j, L));
  if (j < seen && j + L <= keys) {
    store<Past>(out + j, value(j, seen - j));
    j += L;
  }
#pragma GCC unroll 1
  for (; j + L <= keys; j += L) store<Past>(out + j, Reg<S>{});
  if (j < keys) store_part(out + j, keys - j, value(j, most(0, seen - j)));
}

// A row of the output, scores times share and zeros, written some registers at a time: the processor holds back only so
// many stores before it waits for them, so they are spread over the arithmetic of the next row.
template <bool Past, class T> class RowWriter {
  using S = Wide<T>;
  static constexpr int L = kLanes<S>;

 public:
  RowWriter() {}
  RowWriter(T* out, const S* scores, S share, int64_t seen, int64_t keys)
      : out_(out), scores_(scores), share_(splat<S>(share)), seen_(seen), keys_(keys) {
    if constexpr (Past) {  // registers that go past the caches begin at their multiples
      at_ = least(keys, (-reinterpret_cast<uintptr_t>(out) & (L * sizeof(T) - 1)) / sizeof(T));
      if (at_) store_part(out, at_, load(scores) * share_);
    }
  }
  // n registers, where there are so many with scores.
  template <int n> void some() {
    if (at_ + (n - 1) * L >= seen_ || at_ + n * L > keys_) return;
    for (int k = 0; k < n; ++k) store<Past>(out_ + at_ + k * L, load(scores_ + at_ + k * L) * share_);
    at_ += n * L;
  }
  void rest() {
    for (; at_ < seen_ && at_ + L <= keys_; at_ += L) store<Past>(out_ + at_, load(scores_ + at_) * share_);
#pragma GCC unroll 1
    for (; at_ + L <= keys_; at_ += L) store<Past>(out_ + at_, Reg<S>{});
    if (at_ < keys_) store_part(out_ + at_, keys_ - at_, at_ < seen_ ? load(scores_ + at_) * share_ : Reg<S>{});
    at_ = keys_;
  }

 private:
  T* out_ = nullptr;
  const S* scores_ = nullptr;
  Reg<S> share_ = {};
  int64_t seen_ = 0, keys_ = 0, at_ = 0;
};

// The highest of keys [from, seen) of a row and of four registers of others.
template <class T> inline Wide<T> top_of(const T* x, int64_t from, int64_t seen, Reg<Wide<T>>* high) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  for (; from < seen; from += L)
    high[from / L % 4] = larger<S>(high[from / L % 4], load_up_to(x + from, seen - from, static_cast<S>(-INFINITY)));
  return max_of<S>(larger<S>(larger<S>(high[0], high[1]), larger<S>(high[2], high[3])));
}

// scores = 2^(factor x - top); gives their sum. Meanwhile the row before is written, and the highest of the row after is
// found: reading, arithmetic and writing overlap.
template <bool Past, class T>
inline Wide<T> long_row(const T* x, int64_t seen, const T* after, int64_t after_seen, Wide<T> factor, Wide<T> top,
                        Wide<T>* scores, RowWriter<Past, T>& before, CausalAhead<T, 1>& next, Wide<T>* after_top) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S low = static_cast<S>(-INFINITY);
  const Reg<S> factors = splat<S>(factor), offset = splat<S>(top == low ? S(0) : top * factor);
  Reg<S> high[4] = {splat<S>(low), splat<S>(low), splat<S>(low), splat<S>(low)}, sums[4] = {};
  const auto one = [&](int64_t j, Reg<S> x, int k) __attribute__((always_inline)) {
    const Reg<S> e = exp2_of(x * factors - offset);
    store<false>(scores + j, e);
    sums[k] += e;
    before.template some<2>();
  };
  const bool both = after_seen >= seen;
  const T* beside = both ? after : x;
  int64_t j = 0;
  for (; j + 4 * L <= seen; j += 4 * L)
    for (int k = 0; k < 4; ++k) {
      one(j + k * L, load(x + j + k * L), k);
      high[k] = larger<S>(high[k], load(beside + j + k * L));
      if (Past && k == 3 && turns<T>(j)) next.steps();
    }
  if (!both) for (auto& h : high) h = splat<S>(low);
  *after_top = top_of(after, both ? j : 0, after_seen, high);
  for (; j < seen; j += L) one(j, load_up_to(x + j, seen - j, low), 0);
  store<false>(scores + j, Reg<S>{});
  before.rest();
  return sum_of<S>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T, bool Past> void long_rows(const Softmax& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  const int64_t size = a.keys + 3 * kLanes<S>;
  Buffer<S> room(2 * size);
  const S factor = static_cast<S>(a.scale * kLog2e);
  const T* x = static_cast<const T*>(a.x);
  const auto seen_of = [&](int64_t row) {
    return row < end ? most(0, row % a.queries + 1 + a.keys - a.queries) : 0;
  };
  CausalAhead<T, 1> next(a, begin, end, a.x);
  RowWriter<Past, T> before;
  Reg<S> high[4];
  for (auto& h : high) h = splat<S>(static_cast<S>(-INFINITY));
  int64_t seen = seen_of(begin);
  S top = begin < end ? top_of(x + begin * a.keys, 0, seen, high) : S(0);
  for (int64_t row = begin; row < end; ++row) {
    if (Past) next.at(row);
    S* scores = room.data + row % 2 * size;
    const int64_t after_seen = seen_of(row + 1);
    S after_top;
    const S sum = long_row<Past, T>(x + row * a.keys, seen, x + (row + 1) * a.keys, after_seen, factor, top, scores,
                                    before, next, &after_top);
    before = RowWriter<Past, T>(static_cast<T*>(a.out) + row * a.keys, scores, sum == S(0) ? S(0) : S(1) / sum, seen, a.keys);
    seen = after_seen;
    top = after_top;
  }
  before.rest();
  if (Past) fence();
}

template <class T, bool Past> void long_backward_rows(const Softmax& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const Reg<S> scale = splat<S>(static_cast<S>(a.scale));
  CausalAhead<T, 2> next(a, begin, end, a.x, a.y);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * a.keys, seen = most(0, row % a.queries + 1 + a.keys - a.queries);
    const T *g = static_cast<const T*>(a.x) + at, *y = static_cast<const T*>(a.y) + at;
    Reg<S> sums[4] = {};
    if (Past) next.at(row);
    const auto one = [&](int64_t j, Reg<S> product, int k) __attribute__((always_inline)) {
      sums[k] += product;
      };
    int64_t j = 0;
    for (; j + 4 * L <= seen; j += 4 * L) {
      for (int k = 0; k < 4; ++k) one(j + k * L, load(g + j + k * L) * load(y + j + k * L), k);
      if (Past && turns<T>(j)) next.steps();
    }
    for (; j < seen; j += L) one(j, load_up_to(g + j, seen - j, S(0)) * load_up_to(y + j, seen - j, S(0)), 0);
    const Reg<S> dot = splat<S>(sum_of<S>((sums[0] + sums[1]) + (sums[2] + sums[3])));
    put_row<Past>(static_cast<T*>(a.out) + at, seen, a.keys, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      return load_up_to(y + j, n, S(0)) * scale * (load_up_to(g + j, n, S(0)) - dot);
    });
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
