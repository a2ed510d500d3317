// Every kernel for one instruction set; compiled once per set, with SLW_ISA its name and the compiler's flags to match.
#include "cross_entropy.h"
#include "layer_norm.h"
#include "pointwise.h"
#include "softmax_few.h"
#include "softmax_long.h"
#include "softmax_square.h"

namespace slw {
namespace SLW_ISA {
namespace {

template <class F> void with_type(Type type, F f) {
  const FlushTiny flush;
  switch (type) {
    case Type::f32: return f(float{});
    case Type::f16: return f(half{});
    case Type::bf16: return f(bfloat16{});
    case Type::f64: return f(double{});
  }
}
template <class F> void with_flag(bool flag, F f) {
  if (flag) f(Flag<true>{});
  else f(Flag<false>{});
}
// f(an element of the type, whether to write `out` past the caches)
template <class A, class F> void with(const A& a, const void* out, int64_t rows, int64_t columns, F f) {
  with_type(a.type, [&](auto t) {
    using T = decltype(t);
    if constexpr (can_go_past<T>) {
      if (goes_past<T>(out, rows, columns, a.past_bytes)) return f(t, Flag<true>{});
    }
    f(t, Flag<false>{});
  });
}

// f(whether to write `out` past the caches): its rows may begin anywhere in a line
template <class T, class F> void with_past(const Softmax& a, F f) {
  if constexpr (can_go_past<T>) {
    if (goes_past<T>(a.out, a.rows * a.keys / 64, 64, a.past_bytes)) return f(Flag<true>{});
  }
  f(Flag<false>{});
}

void causal_softmax(const Softmax& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.keys, [&](auto t, auto past) {
    using T = decltype(t);
    if (a.first || a.queries == 1 || a.scale < 0) return causal_rows<T, past.value>(a, begin, end);
    if (few<T>(a) && !is_square<T>(a, begin, end)) return few_rows<T, past.value>(a, begin, end);
    with_past<T>(a, [&](auto past) {
      if (!as_squares<T, past.value, false>(a, begin, end)) long_rows<T, past.value>(a, begin, end);
    });
  });
}
void causal_softmax_backward(const Softmax& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.keys, [&](auto t, auto past) {
    using T = decltype(t);
    if (a.first || a.queries == 1) return causal_backward_rows<T, past.value>(a, begin, end);
    if (few<T>(a) && !is_square<T>(a, begin, end)) return few_backward_rows<T, past.value>(a, begin, end);
    with_past<T>(a, [&](auto past) {
      if (!as_squares<T, past.value, true>(a, begin, end)) long_backward_rows<T, past.value>(a, begin, end);
    });
  });
}
void masked_softmax(const Softmax& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.keys, [&](auto t, auto past) { masked_rows<decltype(t), past.value>(a, begin, end); });
}
void layer_norm(const LayerNorm& a, int64_t begin, int64_t end) {
  with(a, a.y, a.rows, a.columns, [&](auto t, auto past) {
    with_flag(a.residual != nullptr,
              [&](auto add) { layer_norm_rows<decltype(t), past.value, add.value>(a, begin, end); });
  });
}
void layer_norm_backward(const LayerNorm& a, int64_t begin, int64_t end) {
  with(a, a.y, a.rows, a.columns, [&](auto t, auto past) {
    with_flag(a.grad_total != nullptr,
              [&](auto add) { layer_norm_backward_blocks<decltype(t), past.value, add.value>(a, begin, end); });
  });
}
void bias_gelu(const BiasGelu& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.columns, [&](auto t, auto past) {
    with_flag(a.tanh, [&](auto tanh) { bias_gelu_rows<decltype(t), past.value, tanh.value>(a, begin, end); });
  });
}
void bias_gelu_backward(const BiasGelu& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.columns, [&](auto t, auto past) {
    with_flag(a.tanh,
              [&](auto tanh) { bias_gelu_backward_blocks<decltype(t), past.value, tanh.value>(a, begin, end); });
  });
}
void dropout(const Dropout& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.columns, [&](auto t, auto past) { dropout_rows<decltype(t), past.value>(a, begin, end); });
}
void dropout_backward(const Dropout& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.columns,
       [&](auto t, auto past) { dropout_backward_blocks<decltype(t), past.value>(a, begin, end); });
}
void cross_entropy(const CrossEntropy& a, int64_t begin, int64_t end) {
  with_type(a.type, [&](auto t) { cross_entropy_rows<decltype(t)>(a, begin, end); });
}
void cross_entropy_backward(const CrossEntropy& a, int64_t begin, int64_t end) {
  with(a, a.out, a.rows, a.columns,
       [&](auto t, auto past) { cross_entropy_backward_rows<decltype(t), past.value>(a, begin, end); });
}

#define SLW_TEXT(x) SLW_TEXT_(x)
#define SLW_TEXT_(x) #x

}  // namespace

extern const Kernels table;
const Kernels table = {
    SLW_TEXT(SLW_ISA), causal_softmax, causal_softmax_backward, masked_softmax, layer_norm, layer_norm_backward,
    bias_gelu,         bias_gelu_backward, dropout,             dropout_backward, cross_entropy, cross_entropy_backward};

}  // namespace SLW_ISA
}  // namespace slw
