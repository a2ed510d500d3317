// Causal softmax over rows of few registers: a row stays in them from one read to one write. Rows that see the same
// number of registers, which is known to the compiler, go together.
#pragma once

#include "ahead.h"
#include "softmax.h"

namespace slw {
namespace SLW_ISA {

#if defined(__AVX512F__)
constexpr int kFewRegisters = 16;
#else
constexpr int kFewRegisters = 8;
#endif

// All of N registers put together by op, in four chains that do not wait for each other.
template <int N, class S, class Op> inline Reg<S> together(const Reg<S>* registers, Op op) {
  Reg<S> chains[4];
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) chains[k % 4] = k < 4 ? registers[k] : op(chains[k % 4], registers[k]);
  if constexpr (N == 1) return chains[0];
  if constexpr (N == 2) return op(chains[0], chains[1]);
  if constexpr (N == 3) return op(op(chains[0], chains[1]), chains[2]);
  return op(op(chains[0], chains[1]), op(chains[2], chains[3]));
}

// Register k of a row of which register N - 1 is the last one with keys that are seen.
template <int N, class T> inline Reg<Wide<T>> load_few(const T* row, int k, int64_t seen, Wide<T> rest) {
  constexpr int L = kLanes<Wide<T>>;
  return k + 1 < N ? load(row + k * L) : load_part(row + k * L, seen - k * L, rest);
}

// Register k of the output, and after the last one zeros to the end of the row.
template <int N, bool Past, class T> inline void store_few(T* row, int k, int64_t keys, Reg<Wide<T>> value) {
  constexpr int L = kLanes<Wide<T>>;
  if (Past || k + 1 < N) store<Past>(row + k * L, value);  // past the caches rows are whole registers
  else store_up_to<Past>(row + k * L, keys - k * L, value);
}
template <int N, bool Past, class T> inline void zeros_after(T* row, int64_t keys) {
  constexpr int L = kLanes<Wide<T>>;
  int64_t j = N * L;
#pragma GCC unroll 1
  for (; j + L <= keys; j += L) store<Past>(row + j, Reg<Wide<T>>{});
  if (j < keys) store_part(row + j, keys - j, Reg<Wide<T>>{});
}

// Rows [row, row + count); the first sees `seen` keys, each of the others one more than the one before.
struct FewRows { int64_t row, count, seen; };

template <int N, bool Past, class T> inline void few_forward(const Softmax& a, const FewRows& rows, Ahead<1>& ahead) {
  using S = Wide<T>;
  const S low = static_cast<S>(-INFINITY), factor = static_cast<S>(a.scale * kLog2e);
  const Reg<S> factors = splat<S>(factor);
  const T* x = static_cast<const T*>(a.x) + rows.row * a.keys;
  T* out = static_cast<T*>(a.out) + rows.row * a.keys;
  Ahead<1> next = ahead;
  int64_t read = 0;
  const int64_t row_bytes = a.keys * sizeof(T);
#pragma GCC unroll 1
  for (int64_t seen = rows.seen; seen < rows.seen + rows.count; ++seen, x += a.keys, out += a.keys) {
    Reg<S> e[N];
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) e[k] = load_few<N>(x, k, seen, low);
    const S top = max_of<S>(together<N, S>(e, Larger<S>{})) * factor;
    if constexpr (Past)
      for (read += row_bytes; read >= kStreams * kLine; read -= kStreams * kLine) next.steps();
    const Reg<S> offset = splat<S>(top == low ? S(0) : top);  // a row of nothing but -infinity keeps it out
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) e[k] = exp2_of(e[k] * factors - offset);
    const S sum = sum_of<S>(together<N, S>(e, Plus<S>{}));
    const Reg<S> share = splat<S>(sum == S(0) ? S(0) : S(1) / sum);
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) store_few<N, Past>(out, k, a.keys, e[k] * share);
    zeros_after<N, Past>(out, a.keys);
  }
  ahead = next;
}

template <int N, bool Past, class T> inline void few_backward(const Softmax& a, const FewRows& rows, Ahead<2>& ahead) {
  using S = Wide<T>;
  const Reg<S> scales = splat<S>(static_cast<S>(a.scale));
  const T *g = static_cast<const T*>(a.x) + rows.row * a.keys, *y = static_cast<const T*>(a.y) + rows.row * a.keys;
  T* out = static_cast<T*>(a.out) + rows.row * a.keys;
  Ahead<2> next = ahead;
  int64_t read = 0;
  const int64_t row_bytes = a.keys * sizeof(T);
#pragma GCC unroll 1
  for (int64_t seen = rows.seen; seen < rows.seen + rows.count; ++seen, g += a.keys, y += a.keys, out += a.keys) {
    // From zero on: of a sum of two products the compiler may round either, of a product and a sum only one.
    Reg<S> sums[4] = {};
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) sums[k % 4] += load_few<N>(g, k, seen, S(0)) * load_few<N>(y, k, seen, S(0));
    if constexpr (Past)
      for (read += row_bytes; read >= kStreams * kLine; read -= kStreams * kLine) next.steps();
    const Reg<S> offset = splat<S>(sum_of<S>((sums[0] + sums[1]) + (sums[2] + sums[3])));
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k)
      store_few<N, Past>(out, k, a.keys,
                         load_few<N>(y, k, seen, S(0)) * scales * (load_few<N>(g, k, seen, S(0)) - offset));
    zeros_after<N, Past>(out, a.keys);
  }
  ahead = next;
}

// f(the number of registers, the rows) for rows [begin, end).
template <class S, class F> inline void each_few(const Softmax& a, int64_t begin, int64_t end, F f) {
  constexpr int L = kLanes<S>;
  while (begin < end) {
    const int64_t query = begin % a.queries, seen = query + 1 + a.keys - a.queries, registers = (seen + L - 1) / L;
    const FewRows rows{begin, least(least(end - begin, a.queries - query), registers * L - seen + 1), seen};
    [&]<int... N>(Numbers<N...>) {
      (void)((registers == N + 1 && (f(Number<N + 1>{}, rows), true)) || ...);
    }(numbers<kFewRegisters>());
    begin += rows.count;
  }
}

template <class T, bool Past> void few_rows(const Softmax& a, int64_t begin, int64_t end) {
  Ahead<1> ahead(kTurn, static_cast<const T*>(a.x) + begin * a.keys);
  each_few<Wide<T>>(a, begin, end, [&](auto n, const FewRows& rows) {
    few_forward<n.value, Past, T>(a, rows, ahead);
  });
  if (Past) fence();
}

template <class T, bool Past> void few_backward_rows(const Softmax& a, int64_t begin, int64_t end) {
  const int64_t at = begin * a.keys;
  Ahead<2> ahead(kTurn, static_cast<const T*>(a.x) + at, static_cast<const T*>(a.y) + at);
  each_few<Wide<T>>(a, begin, end, [&](auto n, const FewRows& rows) {
    few_backward<n.value, Past, T>(a, rows, ahead);
  });
  if (Past) fence();
}

// Whether these rows are few registers long.
template <class T> inline bool few(const Softmax& a) { return a.keys <= kFewRegisters * kLanes<Wide<T>>; }

}  // namespace SLW_ISA
}  // namespace slw
