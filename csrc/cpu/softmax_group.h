// Causal softmax on groups of rows of one matrix, as many as a register has lanes: their maxima and sums are reduced
// together, and memory is read and written while they are computed.
#pragma once

#include "rows.h"
#include "softmax.h"
#include "softmax_square.h"

namespace slw {
namespace SLW_ISA {

// Rows [row, row + count) of the tensor. The first sees `seen` keys, each of the others one more than the one before;
// none sees more than `registers` registers of them, a number that does not depend on where threads cut the rows.
struct Group { int64_t row, count, seen, registers; };

// The group at `row`, of `limit` rows that begin at a multiple of it; none, with a count of 0, at `end`.
template <class S> inline Group group_at(const Softmax& a, int64_t row, int64_t end, int64_t limit) {
  const int64_t query = row % a.queries, before = 1 + a.keys - a.queries;
  const int64_t last = least(query - query % limit + limit, a.queries) - 1;
  const int64_t count = most(0, least(end - row, last - query + 1));
  return Group{row, count, query + before, (last + before + kLanes<S> - 1) / kLanes<S>};
}

// f(column, edge, which) for the registers of the keys [0, seen): N of them, if N is not 0, else as many as needed.
// Where `edge` is not true all lanes are seen. `which` counts to 4: of these sums none waits for the one before.
template <int N, class S, class F> inline void each_register(int64_t seen, F f) {
  constexpr int L = kLanes<S>;
  if constexpr (N > 0) {
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) {
      if (k + 2 < N) f(int64_t(k * L), Flag<false>{}, k);
      else f(int64_t(k * L), Flag<true>{}, k);
    }
  } else {
    int64_t j = 0;
    for (; j + 4 * L <= seen; j += 4 * L) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) f(j + k * L, Flag<false>{}, k);
    }
#pragma GCC unroll 1
    for (; j + L <= seen; j += L) f(j, Flag<false>{}, 0);
    if (j < seen) f(j, Flag<true>{}, 1);
  }
}
template <int N, class S, class Op> inline Reg<S> all_of(const Reg<S>* parts, Op op) {
  if constexpr (N == 1) return parts[0];
  if constexpr (N == 2) return op(parts[0], parts[1]);
  if constexpr (N == 3) return op(op(parts[0], parts[1]), parts[2]);
  return op(op(parts[0], parts[1]), op(parts[2], parts[3]));
}

// The register at column j of a row of which the first `seen` keys are seen.
template <int N, bool Edge, class T>
inline Reg<Wide<T>> load_seen(const T* row, int64_t j, int64_t seen, Wide<T> rest) {
  if constexpr (!Edge) return load(row + j);
  if constexpr (N == 0) return load_part(row + j, seen - j, rest);
  return load_before(row + j, j, seen, rest);
}

// Touches keys [from, to) of a row that will be read.
template <class T> inline void touch(const T* row, int64_t from, int64_t to) {
#pragma GCC unroll 1
  for (int64_t j = from; j < to; j += 64 / sizeof(T)) prefetch_near(row + j);
}

// Where groups are not faster than single rows: short rows that are no whole number of registers.
template <class S> inline bool pays(int64_t keys) { return keys % kLanes<S> == 0 || keys > 4 * kLanes<S>; }

// A group between its arithmetic and its way to memory. Rows of `scores` are whole registers and one of zeros more.
template <class S> struct Stage {
  Group group{0, 0, 0, 0};
  S* scores = nullptr;
  alignas(64) S shares[kLanes<S>];
};

// One short row of the output: scores times share, and zeros.
template <bool Past, class T>
inline void put_row(T* out, const Wide<T>* scores, Wide<T> share, int64_t seen, int64_t keys) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const Reg<S> shares = splat<S>(share);
  int64_t j = 0;
#pragma GCC unroll 1
  do {
    if (j + L > keys) return store_part(out + j, keys - j, load(scores + j) * shares);
    store<Past>(out + j, load(scores + j) * shares);
    j += L;
  } while (j < seen);
#pragma GCC unroll 1
  for (; j + L <= keys; j += L) store<Past>(out + j, Reg<S>{});
  if (j < keys) store_part(out + j, keys - j, Reg<S>{});
}

// Writes one row of the output, scores times share and zeros, some registers at a time: the processor holds back only
// so many stores before it waits for them, so they are spread over the arithmetic of the next group.
template <bool Past, class T> class RowWriter {
  using S = Wide<T>;
  static constexpr int L = kLanes<S>;

 public:
  RowWriter() {}
  RowWriter(T* out, const S* scores, S share, int64_t seen, int64_t keys)
      : out_(out), scores_(scores), share_(splat<S>(share)), seen_(seen), keys_(keys) {
    if constexpr (Past) {  // registers that go past the caches begin at their multiples
      const int64_t head = least(keys, (-reinterpret_cast<uintptr_t>(out) & (L * sizeof(T) - 1)) / sizeof(T));
      if (head) store_part(out, head, load(scores) * share_);
      at_ = head;
    }
  }
  // n registers, where there are so many with scores.
  template <int n> void some() {
    if (at_ + (n - 1) * L >= seen_ || at_ + n * L > keys_) return;
#pragma GCC unroll 4
    for (int k = 0; k < n; ++k) store<Past>(out_ + at_ + k * L, load(scores_ + at_ + k * L) * share_);
    at_ += n * L;
  }
  void rest() {
    int64_t j = at_;
    const int64_t whole = keys_ - L;
    for (; j < seen_ && j <= whole; j += L) store<Past>(out_ + j, load(scores_ + j) * share_);
#pragma GCC unroll 1
    for (; j <= whole; j += L) store<Past>(out_ + j, Reg<S>{});
    if (j < keys_) store_part(out_ + j, keys_ - j, j < seen_ ? load(scores_ + j) * share_ : Reg<S>{});
    at_ = keys_;
  }

 private:
  T* out_ = nullptr;
  const S* scores_ = nullptr;
  Reg<S> share_ = {};
  int64_t seen_ = 0, keys_ = 0, at_ = 0;
};

// tops[r] = the highest of the scores that row r sees, times factor.
template <int N, class T> inline void find_tops(const T* x, int64_t keys, const Group& g, Wide<T> factor, Wide<T>* tops) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S low = static_cast<S>(-INFINITY);
  Reg<S> rows[L];
  x += g.row * keys;
#pragma GCC unroll 1
  for (int64_t r = 0; r < g.count; ++r, x += keys) {
    Reg<S> high[4] = {splat<S>(low), splat<S>(low), splat<S>(low), splat<S>(low)};
    const int64_t seen = g.seen + r;
    each_register<N, S>(seen, [&](int64_t j, auto edge, int which) {
      const Reg<S> scores = load_seen<N, edge.value>(x, j, seen, low);
      high[which] = N ? scores : larger<S>(high[which], scores);
    });
    rows[r] = all_of<N, S>(high, Larger<S>{});
  }
#pragma GCC unroll 1
  for (int64_t r = g.count; r < L; ++r) rows[r] = Reg<S>{};
  // A row of nothing but -infinity keeps it out of the difference.
  const Reg<S> top = fold<S>(rows, Larger<S>{}) * splat<S>(factor);
  store<false>(tops, top == splat<S>(low) ? Reg<S>{} : top);
}

// Where a group's rows come from and go to.
template <class T> struct Place {
  const T* x;
  T* out;
  int64_t keys, stride;
  bool flat;  // every row of the output begins with a line
};

// now.scores = 2^(factor x - top), and in sums[r] what row r's add up to. Meanwhile `before` is written, and what the
// next group will read is touched.
template <int N, bool Past, class T>
inline void exponentials(const Place<T>& at, const Stage<Wide<T>>& now, const Stage<Wide<T>>& before, const Group& next,
                         Wide<T> factor, const Wide<T>* tops, Reg<Wide<T>>* sums) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const S low = static_cast<S>(-INFINITY);
  const Reg<S> factors = splat<S>(factor);
  S* scores = now.scores;
  const S* done = before.scores;
  const T* x = at.x + now.group.row * at.keys;
  T* out = at.out + before.group.row * at.keys;
#pragma GCC unroll 1
  for (int64_t r = 0; r < now.group.count; ++r, x += at.keys, scores += at.stride) {
    const Reg<S> offset = splat<S>(tops[r]);
    const int64_t seen = now.group.seen + r;
    const bool writes = r < before.group.count;
    RowWriter<Past, T> row;
    if (N == 0 && writes) row = RowWriter<Past, T>(out, done, before.shares[r], before.group.seen + r, at.keys);
    Reg<S> parts[4] = {};
    const T* ahead = at.x + (next.row + r) * at.keys;
    each_register<N, S>(seen, [&](int64_t j, auto edge, int which) {
      if (N == 0 && j < next.seen + r) prefetch(ahead + j);
      const Reg<S> e = exp2_of(load_seen<N, edge.value>(x, j, seen, low) * factors - offset);
      store<false>(scores + j, e);
      parts[which] = N ? e : parts[which] + e;
      if (N == 0) row.template some<2>();
    });
    store<false>(scores + (N ? N * L : (seen + L - 1) / L * L), Reg<S>{});
    if (N == 0 && writes) row.rest();
    if (N && writes) {
      if (Past && at.flat) put_row<Past>(out, done, before.shares[r], before.group.seen + r, at.keys);
      else put_row<false>(out, done, before.shares[r], before.group.seen + r, at.keys);
    }
    out += at.keys;
    done += at.stride;
    touch(ahead, N ? 0 : seen, next.seen + r);
    sums[r] = all_of<N, S>(parts, Plus<S>{});
  }
}

// Calls f with the number of registers that the group's rows see, 0 where there are many.
template <class F> inline void with_registers(const Group& g, F f) {
  switch (g.count ? g.registers : 0) {
    case 1: return f(Number<1>{});
    case 2: return f(Number<2>{});
    case 3: return f(Number<3>{});
    case 4: return f(Number<4>{});
    default: return f(Number<0>{});
  }
}

template <class T, bool Past> void causal_groups(const Softmax& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  if (as_squares<T, Past, false>(a, begin, end)) return;
  if (!pays<S>(a.keys)) return causal_rows<T, false>(a, begin, end);
  constexpr int L = kLanes<S>;
  constexpr int64_t kStageBytes = 12288;  // the scores of a group, read and computed, stay in the first cache
  const Place<T> at{static_cast<const T*>(a.x), static_cast<T*>(a.out), a.keys, (a.keys + L - 1) / L * L + L,
                    a.keys * sizeof(T) % 64 == 0};
  const S factor = static_cast<S>(a.scale * kLog2e);
  const int64_t rows = most(1, least(L, kStageBytes / int64_t(at.stride * sizeof(S))));
  Buffer<S> scores(2 * rows * at.stride);
  Stage<S> stages[2];
  Stage<S>*now = &stages[0], *before = &stages[1];
  now->scores = scores.data;
  before->scores = scores.data + rows * at.stride;
  alignas(64) S tops[L];
  Reg<S> sums[L] = {};
  const auto tops_of = [&](const Group& g) {
    with_registers(g, [&](auto n) { find_tops<n.value>(at.x, at.keys, g, factor, tops); });
  };
  now->group = group_at<S>(a, begin, end, rows);
  tops_of(now->group);
  while (now->group.count || before->group.count) {
    const Group next = group_at<S>(a, now->group.row + now->group.count, end, rows);
    with_registers(now->group, [&](auto n) {
      exponentials<n.value, Past, T>(at, *now, *before, next, factor, tops, sums);
    });
    tops_of(next);  // before the sums are needed: neither waits for the other
    const Reg<S> sum = fold<S>(sums, Plus<S>{});
    store<false>(now->shares, sum == Reg<S>{} ? Reg<S>{} : splat<S>(1) / sum);
    for (int64_t r = now->group.count; r < before->group.count; ++r)
      RowWriter<Past, T>(at.out + (before->group.row + r) * at.keys, before->scores + r * at.stride, before->shares[r],
                         before->group.seen + r, at.keys).rest();
    Stage<S>* const free = before;
    before = now;
    now = free;
    now->group = next;
  }
  if (Past) fence();
}

// ---- backward: scale x y x (grad - sum(grad x y)) ----

template <int N, class T> inline Reg<Wide<T>> product_sum(const T* g, const T* y, int64_t seen) {
  using S = Wide<T>;
  Reg<S> parts[4] = {};
  each_register<N, S>(seen, [&](int64_t j, auto edge, int which) {
    const Reg<S> product = load_seen<N, edge.value>(g, j, seen, S(0)) * load_seen<N, edge.value>(y, j, seen, S(0));
    parts[which] = N ? product : parts[which] + product;
  });
  return all_of<N, S>(parts, Plus<S>{});
}

// One row of the gradient. Past the caches its registers begin at their multiples in memory.
template <bool Past, class T>
inline void put_grad_row(T* out, const T* g, const T* y, Wide<T> scale, Wide<T> dot, int64_t seen, int64_t keys) {
  using S = Wide<T>;
  constexpr int L = kLanes<S>;
  const Reg<S> scales = splat<S>(scale), offset = splat<S>(dot);
  const auto part = [&](int64_t j, int64_t n) {  // n lanes, those that are not seen 0
    n = most(0, least(n, seen - j));
    return load_part(y + j, n, S(0)) * scales * (load_part(g + j, n, S(0)) - offset);
  };
  int64_t j = 0;
  if constexpr (Past) {
    j = least(keys, (-reinterpret_cast<uintptr_t>(out) & (L * sizeof(T) - 1)) / sizeof(T));
    if (j) store_part(out, j, part(0, j));
  }
#pragma GCC unroll 2
  for (; j + L <= seen; j += L) store<Past>(out + j, load(y + j) * scales * (load(g + j) - offset));
  if (j < seen && j + L <= keys) {
    store<Past>(out + j, part(j, L));
    j += L;
  }
#pragma GCC unroll 1
  for (; j + L <= keys; j += L) store<Past>(out + j, Reg<S>{});
  if (j < keys) store_part(out + j, keys - j, part(j, keys - j));
}

// The sums of a group are taken while the one before is written.
template <int N, bool Past, class T>
inline void backward_step(const Softmax& a, const Group& g, const Group& before, int64_t ahead, const Wide<T>* dots,
                          Reg<Wide<T>>* sums) {
  const int64_t keys = a.keys;
  const T *grad = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
  T* out = static_cast<T*>(a.out);
  for (int64_t r = 0; r < g.count || r < before.count; ++r) {
    const int64_t at = (g.row + r) * keys, done = (before.row + r) * keys;
    if (r < g.count) {
      touch(grad + at + ahead, 0, g.seen + r);
      touch(y + at + ahead, 0, g.seen + r);
      sums[r] = product_sum<N>(grad + at, y + at, g.seen + r);
    }
    if (r < before.count)
      put_grad_row<Past>(out + done, grad + done, y + done, static_cast<Wide<T>>(a.scale), dots[r], before.seen + r, keys);
  }
}

template <class T, bool Past> void causal_backward_groups(const Softmax& a, int64_t begin, int64_t end) {
  using S = Wide<T>;
  if (as_squares<T, Past, true>(a, begin, end)) return;
  if (!pays<S>(a.keys)) return causal_backward_rows<T, false>(a, begin, end);
  // Long rows whose registers begin at their multiples need no groups.
  if (a.keys > 512 && a.keys * sizeof(T) % 64 == 0) return causal_backward_rows<T, Past>(a, begin, end);
  constexpr int L = kLanes<S>;
  const int64_t rows = most(1, least(L, 12288 / int64_t(a.keys * sizeof(S))));
  alignas(64) S dots[L] = {};
  Reg<S> sums[L] = {};
  Group before{0, 0, 0, 0}, g = group_at<S>(a, begin, end, rows);
  while (g.count || before.count) {
    const int64_t ahead = g.row + 2 * g.count <= end ? g.count * a.keys : 0;
    with_registers(g, [&](auto n) { backward_step<n.value, Past, T>(a, g, before, ahead, dots, sums); });
    store<false>(dots, fold<S>(sums, Plus<S>{}));
    before = g;
    g = group_at<S>(a, g.row + g.count, end, rows);
  }
  if (Past) fence();
}

}  // namespace SLW_ISA
}  // namespace slw
