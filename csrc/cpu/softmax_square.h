// Causal softmax over 8 x 8 and 16 x 16 scores, where a register has 16 lanes. Two matrices of 8 x 8, or one of 16 x 16,
// stay in the registers between one read and one write; all their 16 maxima and sums are reduced together, and the keys
// that are seen are constants.
#pragma once

#include "ahead.h"
#include "softmax.h"

namespace slw {
namespace SLW_ISA {

#if defined(__AVX512F__)
// Four rows; each 128 bits of the result have a part of every one of them.
template <class Op> inline Reg<float> fold_four(const Reg<float>* rows, Op op) {
  const auto pairs = [&](Reg<float> a, Reg<float> b) {
    return op((Reg<float>)_mm512_unpacklo_ps((__m512)a, (__m512)b), (Reg<float>)_mm512_unpackhi_ps((__m512)a, (__m512)b));
  };
  const __m512d a = (__m512d)pairs(rows[0], rows[1]), b = (__m512d)pairs(rows[2], rows[3]);
  return op((Reg<float>)_mm512_unpacklo_pd(a, b), (Reg<float>)_mm512_unpackhi_pd(a, b));
}
template <class Op> inline Reg<float> fold_parts(Reg<float> a, Reg<float> b, Op op) {
  return op((Reg<float>)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88),
            (Reg<float>)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd));
}
// Lane i of the result: all lanes of rows[i], of 16, put together by op.
template <class Op> inline Reg<float> fold(const Reg<float>* rows, Op op) {
  return fold_parts(fold_parts(fold_four(rows, op), fold_four(rows + 4, op), op),
                    fold_parts(fold_four(rows + 8, op), fold_four(rows + 12, op), op), op);
}

template <int K> struct Square {
  static constexpr int registers = K;  // two rows of 8 are in one
  static constexpr int64_t elements = 16 * registers;
};

// The lanes of register k that are seen.
template <int K> constexpr __mmask16 seen_lanes(int k) {
  if (K == 16) return static_cast<__mmask16>((2u << k) - 1);
  const int query = 2 * k % 8;
  return static_cast<__mmask16>(((2u << query) - 1) | ((4u << query) - 1) << 8);
}

// Each row's lanes put together by op. With K = 8 the rows of register k are lanes k and k + 4, from register 4 on k + 4
// and k + 8.
template <int K, class Op> inline Reg<float> fold_rows(const Reg<float>* registers, Op op) {
  if constexpr (K == 16) return fold(registers, op);
  return fold_parts(fold_four(registers, op), fold_four(registers + 4, op), op);
}
// What belongs to each row of register k, in all of its lanes.
template <int K> inline Reg<float> spread(Reg<float> of_rows, int k) {
  const __m512i second = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
  const __m512i row = _mm512_set1_epi32(K == 16 || k < 4 ? k : k + 4);
  return (Reg<float>)_mm512_permutexvar_ps(K == 16 ? row : _mm512_add_epi32(row, second), (__m512)of_rows);
}

template <int K, bool Past, class T> inline void square_forward(const T* x, T* out, float factor, Ahead<1>& next) {
  const float low = -INFINITY;
  const Reg<float> factors = splat(factor), none = splat(low);
  Reg<float> e[K];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
    e[k] = load_lanes(x + 16 * k, seen_lanes<K>(k), low);
    if (Past && k * 16 * sizeof(T) % (kStreams * kLine) == 0) next.steps();
  }
  Reg<float> top = fold_rows<K>(e, Larger<float>{}) * factors;
  top = top == none ? Reg<float>{} : top;  // a row of nothing but -infinity keeps it out of the difference
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) e[k] = exp2_of(e[k] * factors - spread<K>(top, k));
  const Reg<float> sum = fold_rows<K>(e, Plus<float>{});
  const Reg<float> share = sum == Reg<float>{} ? Reg<float>{} : splat(1.0f) / sum;
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) store<Past>(out + 16 * k, e[k] * spread<K>(share, k));
}

template <int K, bool Past, class T>
inline void square_backward(const T* g, const T* y, T* out, float scale, Ahead<2>& next) {
  Reg<float> products[K];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
    products[k] = load_lanes(g + 16 * k, seen_lanes<K>(k), 0.0f) * load_lanes(y + 16 * k, seen_lanes<K>(k), 0.0f);
    if (Past && k * 16 * sizeof(T) % (kStreams * kLine) == 0) next.steps();
  }
  const Reg<float> dot = fold_rows<K>(products, Plus<float>{}), scales = splat(scale);
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
    const Reg<float> share = load_lanes(y + 16 * k, seen_lanes<K>(k), 0.0f) * scales;
    store<Past>(out + 16 * k, share * (load_lanes(g + 16 * k, seen_lanes<K>(k), 0.0f) - spread<K>(dot, k)));
  }
}

// f(x, y, out, in memory) for the matrices of rows [begin, end); the last one of 8 x 8, if it is alone, is moved
// through a place for two.
template <int K, class T, class F> inline void each_square(const Softmax& a, int64_t begin, int64_t end, F f) {
  constexpr int64_t kElements = Square<K>::elements;
  const T *x = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
  T* out = static_cast<T*>(a.out);
  int64_t i = begin * K;
  for (; i + kElements <= end * K; i += kElements) f(x + i, y ? y + i : y, out + i, Flag<true>{});
  const int64_t left = (end * K - i) * sizeof(T);
  if (!left) return;
  alignas(64) T places[3][kElements] = {};
  memcpy(places[0], x + i, left);
  if (y) memcpy(places[1], y + i, left);
  f(places[0], places[1], places[2], Flag<false>{});
  memcpy(out + i, places[2], left);
}

template <int K, class T, bool Past> void square_rows(const Softmax& a, int64_t begin, int64_t end) {
  const float factor = static_cast<float>(a.scale * kLog2e);
  Ahead<1> next(0, static_cast<const T*>(a.x) + begin * K);
  each_square<K, T>(a, begin, end, [&](const T* x, const T*, T* out, auto inside) {
    square_forward<K, Past && inside.value>(x, out, factor, next);
  });
  if (Past) fence();
}

template <int K, class T, bool Past> void square_backward_rows(const Softmax& a, int64_t begin, int64_t end) {
  const float scale = static_cast<float>(a.scale);
  Ahead<2> next(0, static_cast<const T*>(a.x) + begin * K, static_cast<const T*>(a.y) + begin * K);
  each_square<K, T>(a, begin, end, [&](const T* g, const T* y, T* out, auto inside) {
    square_backward<K, Past && inside.value>(g, y, out, scale, next);
  });
  if (Past) fence();
}
#endif

// Whether rows [begin, end) are whole matrices that this file has a kernel for.
template <class T> inline bool is_square(const Softmax& a, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  const int64_t size = a.keys;
  return sizeof(T) < 8 && (size == 8 || size == 16) && a.queries == size && begin % size == 0 && end % size == 0;
#else
  return false;
#endif
}

// Computes them, if they are; gives whether it did.
template <class T, bool Past, bool Backward> inline bool as_squares(const Softmax& a, int64_t begin, int64_t end) {
  if (!is_square<T>(a, begin, end)) return false;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) < 8) {
    if constexpr (Backward) a.keys == 8 ? square_backward_rows<8, T, Past>(a, begin, end)
                                        : square_backward_rows<16, T, Past>(a, begin, end);
    else a.keys == 8 ? square_rows<8, T, Past>(a, begin, end) : square_rows<16, T, Past>(a, begin, end);
  }
#endif
  return true;
}

}  // namespace SLW_ISA
}  // namespace slw
