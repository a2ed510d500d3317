// What kernels need that work on several rows at once: the reductions of all of them in one register.
#pragma once

#include "vec.h"

namespace slw {
namespace SLW_ISA {

template <class S> struct Larger {
  Reg<S> operator()(Reg<S> a, Reg<S> b) const { return larger<S>(a, b); }
};
template <class S> struct Plus {
  Reg<S> operator()(Reg<S> a, Reg<S> b) const { return a + b; }
};

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
#elif defined(__AVX2__)
template <class Op> inline Reg<float> fold_four(const Reg<float>* rows, Op op) {
  const auto pairs = [&](Reg<float> a, Reg<float> b) {
    return op((Reg<float>)_mm256_unpacklo_ps((__m256)a, (__m256)b), (Reg<float>)_mm256_unpackhi_ps((__m256)a, (__m256)b));
  };
  const __m256d a = (__m256d)pairs(rows[0], rows[1]), b = (__m256d)pairs(rows[2], rows[3]);
  return op((Reg<float>)_mm256_unpacklo_pd(a, b), (Reg<float>)_mm256_unpackhi_pd(a, b));
}
template <class Op> inline Reg<float> fold_parts(Reg<float> a, Reg<float> b, Op op) {
  return op((Reg<float>)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20),
            (Reg<float>)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31));
}
#endif

// Lane i of the result: all lanes of rows[i] put together by op. As many rows as lanes.
template <class S, class Op> inline Reg<S> fold(const Reg<S>* rows, Op op) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return fold_parts(fold_parts(fold_four(rows, op), fold_four(rows + 4, op), op),
                      fold_parts(fold_four(rows + 8, op), fold_four(rows + 12, op), op), op);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return fold_parts(fold_four(rows, op), fold_four(rows + 4, op), op);
#endif
  constexpr int L = kLanes<S>;
  Reg<S> result = {};
  for (int j = 0; j < L; ++j) {
    Reg<S> lane;
    for (int i = 0; i < L; ++i) lane[i] = rows[i][j];
    result = j ? op(result, lane) : lane;
  }
  return result;
}

}  // namespace SLW_ISA
}  // namespace slw
