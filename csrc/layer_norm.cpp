// LayerNorm on the CPU, alone and with the residual addition before it: megatron_slw/ops/layer_norm.py.
#include <tuple>

#include "tensors.h"

namespace slw {
namespace {

void check(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const int64_t size = x.dim() ? x.size(x.dim() - 1) : -1;
  STD_TORCH_CHECK(
      weight.dim() == 1 && bias.dim() == 1 && weight.size(0) == size && bias.size(0) == size,
      "layer_norm over ", size, " columns: weight and bias differ");
}

LayerNorm arguments(const Tensor& x) {
  LayerNorm a{};
  a.type = type_of(x);
  a.columns = x.size(x.dim() - 1);
  a.rows = a.columns ? x.numel() / a.columns : 0;
  a.block = block_rows(a.rows);
  a.past_bytes = kPastBytes;
  return a;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& input, const std::optional<Tensor>& residual, const Tensor& weight, const Tensor& bias, double eps) {
  check(input, weight, bias);
  const Tensor x = dense(input);
  const ScalarType wide = compute_type(x);
  const Tensor w = dense(weight, wide), b = dense(bias, wide);
  LayerNorm a = arguments(x);
  std::vector<int64_t> rows = sizes_of(x);
  rows.pop_back();
  Tensor y = empty(x), mean = empty(x, rows, wide), rstd = empty(x, rows, wide);
  Tensor total = residual.has_value() ? empty(x) : x;
  const std::optional<Tensor> more = dense(residual, x.scalar_type());
  a.x = x.const_data_ptr();
  a.residual = pointer(more);
  a.total = total.mutable_data_ptr();
  a.y = y.mutable_data_ptr();
  a.mean = mean.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  a.weight = w.const_data_ptr();
  a.bias = b.const_data_ptr();
  a.eps = eps;
  parallel(a.rows, a.columns, [&](int64_t begin, int64_t end) { kernels().layer_norm(a, begin, end); });
  return {y, total, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const std::optional<Tensor>& grad_total, const Tensor& input, const Tensor& mean,
    const Tensor& rstd, const Tensor& weight) {
  const Tensor x = dense(input), g = dense(grad, input.scalar_type());
  const ScalarType wide = compute_type(x);
  const Tensor w = dense(weight, wide), m = dense(mean, wide), r = dense(rstd, wide);
  const std::optional<Tensor> more = dense(grad_total, x.scalar_type());
  LayerNorm a = arguments(x);
  const int64_t blocks = block_count(a.rows);
  Tensor partial = empty(x, {blocks, 2, a.columns}, wide), out = empty(x);
  a.x = x.const_data_ptr();
  a.grad = g.const_data_ptr();
  a.grad_total = pointer(more);
  a.y = out.mutable_data_ptr();
  a.mean = m.mutable_data_ptr();
  a.rstd = r.mutable_data_ptr();
  a.weight = w.const_data_ptr();
  a.partial = partial.mutable_data_ptr();
  parallel(blocks, a.block * a.columns, [&](int64_t begin, int64_t end) {
    kernels().layer_norm_backward(a, begin, end);
  });
  return {out, sum_blocks(partial, 0, weight), sum_blocks(partial, 1, weight)};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(
    const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const auto [y, total, mean, rstd] = forward(x, std::nullopt, weight, bias, eps);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight) {
  return backward(grad, std::nullopt, x, mean, rstd, weight);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm(
    const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, double eps) {
  STD_TORCH_CHECK(sizes_of(x) == sizes_of(residual), "add_layer_norm adds two tensors of one shape");
  return forward(x, residual, weight, bias, eps);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("add_layer_norm_backward", TORCH_BOX(&backward));
}

}  // namespace slw
