// residual + dropout(x + bias) on the CPU: megatron_slw/ops/dropout_residual.py.
#include <tuple>

#include "tensors.h"

namespace slw {
namespace {

Dropout arguments(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& seed, double p) {
  STD_TORCH_CHECK(
      seed.dim() == 0 && seed.scalar_type() == ScalarType::Long, "bias_dropout_add: the seed is one int64");
  STD_TORCH_CHECK(p >= 0.0 && p < 1.0, "bias_dropout_add: p is ", p, ", not in [0, 1)");
  Dropout a{};
  a.type = type_of(x);
  a.columns = x.dim() ? x.size(x.dim() - 1) : 1;
  a.rows = a.columns ? x.numel() / a.columns : 0;
  STD_TORCH_CHECK(
      !bias.has_value() || (x.dim() > 0 && bias->dim() == 1 && bias->size(0) == a.columns),
      "bias_dropout_add: the bias does not fit ", a.columns, " columns");
  a.block = block_rows(a.rows);
  a.drop = p > 0.0;
  a.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.const_data_ptr()));
  a.threshold = static_cast<uint32_t>(p * 4294967296.0);
  a.factor = 1.0 / (1.0 - p);
  a.past_bytes = kPastBytes;
  return a;
}

Tensor bias_dropout_add(
    const Tensor& input, const std::optional<Tensor>& bias, const Tensor& residual, const Tensor& seed, double p) {
  STD_TORCH_CHECK(sizes_of(input) == sizes_of(residual), "bias_dropout_add adds two tensors of one shape");
  const Tensor x = dense(input), r = dense(residual, input.scalar_type());
  const std::optional<Tensor> b = dense(bias, compute_type(x));
  Dropout a = arguments(x, b, seed, p);
  Tensor out = empty(x);
  a.x = x.const_data_ptr();
  a.bias = pointer(b);
  a.residual = r.const_data_ptr();
  a.out = out.mutable_data_ptr();
  parallel(a.rows, a.columns, [&](int64_t begin, int64_t end) { kernels().dropout(a, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> bias_dropout_add_backward(
    const Tensor& grad, const std::optional<Tensor>& bias, const Tensor& seed, double p) {
  const Tensor g = dense(grad);
  Dropout a = arguments(g, bias, seed, p);
  const int64_t blocks = block_count(a.rows);
  Tensor out = empty(g);
  a.x = g.const_data_ptr();
  a.out = out.mutable_data_ptr();
  Tensor partial = empty(g, {bias.has_value() ? blocks : 0, 1, a.columns}, compute_type(g));
  a.partial = bias.has_value() ? partial.mutable_data_ptr() : nullptr;
  parallel(blocks, a.block * a.columns, [&](int64_t begin, int64_t end) {
    kernels().dropout_backward(a, begin, end);
  });
  return {out, bias.has_value() ? sum_blocks(partial, 0, *bias) : empty(g, {0}, g.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CPU, m) {
  m.impl("bias_dropout_add", TORCH_BOX(&bias_dropout_add));
  m.impl("bias_dropout_add_backward", TORCH_BOX(&bias_dropout_add_backward));
}

}  // namespace slw
