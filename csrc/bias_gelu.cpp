// GELU(x + bias) on the CPU: megatron_slw/ops/bias_gelu.py.
#include <tuple>

#include "tensors.h"

namespace slw {
namespace {

BiasGelu arguments(const Tensor& x, const Tensor& bias, bool tanh) {
  const int64_t size = x.dim() ? x.size(x.dim() - 1) : -1;
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == size, "bias_gelu: the bias does not fit ", size, " columns");
  BiasGelu a{};
  a.type = type_of(x);
  a.columns = size;
  a.rows = size ? x.numel() / size : 0;
  a.block = block_rows(a.rows);
  a.tanh = tanh;
  a.past_bytes = kPastBytes;
  return a;
}

Tensor bias_gelu(const Tensor& input, const Tensor& bias, bool tanh) {
  const Tensor x = dense(input), b = dense(bias, compute_type(input));
  BiasGelu a = arguments(x, b, tanh);
  Tensor out = empty(x);
  a.x = x.const_data_ptr();
  a.bias = b.const_data_ptr();
  a.out = out.mutable_data_ptr();
  parallel(a.rows, a.columns, [&](int64_t begin, int64_t end) { kernels().bias_gelu(a, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> bias_gelu_backward(
    const Tensor& grad, const Tensor& input, const Tensor& bias, bool tanh) {
  const ScalarType wide = compute_type(input);
  const Tensor x = dense(input), b = dense(bias, wide), g = dense(grad, input.scalar_type());
  BiasGelu a = arguments(x, b, tanh);
  const int64_t blocks = block_count(a.rows);
  Tensor out = empty(x), partial = empty(x, {blocks, 1, a.columns}, wide);
  a.x = x.const_data_ptr();
  a.bias = b.const_data_ptr();
  a.grad = g.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.partial = partial.mutable_data_ptr();
  parallel(blocks, a.block * a.columns, [&](int64_t begin, int64_t end) {
    kernels().bias_gelu_backward(a, begin, end);
  });
  return {out, sum_blocks(partial, 0, bias)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CPU, m) {
  m.impl("bias_gelu", TORCH_BOX(&bias_gelu));
  m.impl("bias_gelu_backward", TORCH_BOX(&bias_gelu_backward));
}

}  // namespace slw
