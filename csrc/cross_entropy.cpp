// Cross-entropy over the columns of one rank, on the CPU: megatron_slw/ops/cross_entropy.py.
#include <tuple>

#include "tensors.h"

namespace slw {
namespace {

// The rows may be slices of wider ones: a copy would be what the operator exists to avoid.
Tensor readable(const Tensor& logits) {
  return logits.dim() == 2 && (logits.stride(1) == 1 || logits.size(1) <= 1) ? logits : dense(logits);
}

CrossEntropy arguments(const Tensor& logits, const Tensor& labels, int64_t start, int64_t columns) {
  STD_TORCH_CHECK(
      logits.dim() == 2 && labels.dim() == 1 && labels.size(0) == logits.size(0),
      "cross_entropy needs (N, v) logits and (N,) labels");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "cross_entropy needs int64 labels");
  STD_TORCH_CHECK(0 <= columns && columns <= logits.size(1), "cross_entropy: ", columns, " of ", logits.size(1), " columns");
  CrossEntropy a{};
  a.type = type_of(logits);
  a.logits = logits.const_data_ptr();
  a.row_stride = logits.stride(0);
  a.labels = static_cast<const int64_t*>(labels.const_data_ptr());
  a.start = start;
  a.rows = logits.size(0);
  a.columns = columns;
  a.width = logits.size(1);
  a.past_bytes = kPastBytes;
  return a;
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_statistics(
    const Tensor& logits, const Tensor& labels, int64_t start, int64_t columns) {
  const Tensor x = readable(logits), l = dense(labels);
  CrossEntropy a = arguments(x, l, start, columns);
  const ScalarType wide = compute_type(x);
  Tensor top = empty(x, {a.rows}, wide), total = empty(x, {a.rows}, wide), target = empty(x, {a.rows}, wide);
  a.top = top.mutable_data_ptr();
  a.total = total.mutable_data_ptr();
  a.target = target.mutable_data_ptr();
  parallel(a.rows, a.columns, [&](int64_t begin, int64_t end) { kernels().cross_entropy(a, begin, end); });
  return {top, total, target};
}

Tensor cross_entropy_backward(
    const Tensor& grad, const Tensor& logits, const Tensor& labels, const Tensor& top, const Tensor& total,
    int64_t start, int64_t columns) {
  const Tensor x = readable(logits), l = dense(labels);
  CrossEntropy a = arguments(x, l, start, columns);
  const ScalarType wide = compute_type(x);
  const Tensor g = dense(grad, wide), t = dense(top, wide), s = dense(total, wide);
  Tensor out = empty(x, {a.rows, a.width}, x.scalar_type());
  a.grad = g.const_data_ptr();
  a.top = t.mutable_data_ptr();
  a.total = s.mutable_data_ptr();
  a.out = out.mutable_data_ptr();
  parallel(a.rows, a.width, [&](int64_t begin, int64_t end) { kernels().cross_entropy_backward(a, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CPU, m) {
  m.impl("cross_entropy_statistics", TORCH_BOX(&cross_entropy_statistics));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace slw
