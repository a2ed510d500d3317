// Softmax of attention scores on the CPU: megatron_slw/ops/softmax.py.
#include "tensors.h"

namespace slw {
namespace {

// Checks and the arguments that forward and backward share.
Softmax arguments(const Tensor& scores, double scale, const std::optional<Tensor>& first) {
  const int64_t dims = scores.dim();
  STD_TORCH_CHECK(dims >= 2, "causal_softmax needs (..., Q, K) scores");
  STD_TORCH_CHECK(scale != 0.0, "causal_softmax: the scale is 0");
  Softmax a{};
  a.type = type_of(scores);
  a.queries = scores.size(dims - 2);
  a.keys = scores.size(dims - 1);
  a.rows = a.keys ? scores.numel() / a.keys : 0;
  a.scale = scale;
  a.past_bytes = kPastBytes;
  a.rows_per_batch = std::max<int64_t>(1, dims > 2 && scores.size(0) ? a.rows / scores.size(0) : a.rows);
  if (first.has_value()) {
    STD_TORCH_CHECK(
        dims >= 3 && first->dim() == 2 && first->size(0) == scores.size(0) && first->size(1) == a.queries,
        "causal_softmax: first must be (B, Q) = (", scores.size(0), ", ", a.queries, ")");
    a.first = static_cast<const int64_t*>(first->const_data_ptr());
  }
  return a;
}

void check_causal(const Softmax& a) {
  STD_TORCH_CHECK(a.queries <= a.keys, "causal_softmax: ", a.queries, " queries see only ", a.keys, " keys");
}

// Causal rows grow with the query: threads take blocks of rows from both ends.
template <class F> void balanced(const Softmax& a, F kernel) {
  const int64_t size = std::max<int64_t>(16, kGrain / std::max<int64_t>(1, a.keys) / 16 * 16);
  const int64_t blocks = (a.rows + size - 1) / size;
  parallel(blocks, size * a.keys, [&](int64_t begin, int64_t end) {
    if (begin == 0 && end == blocks) return kernel(a, int64_t(0), a.rows);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % 2 ? blocks - 1 - i / 2 : i / 2;
      kernel(a, block * size, std::min(a.rows, (block + 1) * size));
    }
  });
}

Tensor causal_softmax(const Tensor& scores, double scale, const std::optional<Tensor>& first) {
  const Tensor x = dense(scores);
  const std::optional<Tensor> starts = dense(first, ScalarType::Long);
  Softmax a = arguments(x, scale, starts);
  check_causal(a);
  Tensor out = empty(x);
  a.x = x.const_data_ptr();
  a.out = out.mutable_data_ptr();
  balanced(a, kernels().causal_softmax);
  return out;
}

Tensor causal_softmax_backward(
    const Tensor& grad, const Tensor& output, double scale, const std::optional<Tensor>& first) {
  const Tensor y = dense(output), g = dense(grad, output.scalar_type());
  const std::optional<Tensor> starts = dense(first, ScalarType::Long);
  Softmax a = arguments(y, scale, starts);
  check_causal(a);
  Tensor out = empty(y);
  a.x = g.const_data_ptr();
  a.y = y.const_data_ptr();
  a.out = out.mutable_data_ptr();
  balanced(a, kernels().causal_softmax_backward);
  return out;
}

Tensor masked_softmax(const Tensor& scores, const Tensor& seen, double scale) {
  STD_TORCH_CHECK(seen.scalar_type() == ScalarType::Bool, "masked_softmax needs a bool mask");
  STD_TORCH_CHECK(scale != 0.0, "masked_softmax: the scale is 0");
  STD_TORCH_CHECK(scores.dim() >= 1 && seen.dim() <= scores.dim(), "masked_softmax: the mask has too many axes");
  const Tensor x = dense(scores);
  Softmax a{};
  a.type = type_of(x);
  a.keys = x.size(x.dim() - 1);
  a.rows = a.keys ? x.numel() / a.keys : 0;
  a.scale = scale;
  a.past_bytes = kPastBytes;
  const int64_t missing = x.dim() - seen.dim();
  std::vector<int64_t> sizes, strides;
  for (int64_t d = 0; d < x.dim(); ++d) {
    const int64_t size = d < missing ? 1 : seen.size(d - missing);
    STD_TORCH_CHECK(size == 1 || size == x.size(d), "masked_softmax: the mask does not broadcast to the scores");
    sizes.push_back(x.size(d));
    strides.push_back(size == 1 ? 0 : seen.stride(d - missing));
  }
  Tensor out = empty(x);
  a.x = x.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.seen = static_cast<const bool*>(seen.const_data_ptr());
  a.seen_sizes = sizes.data();
  a.seen_strides = strides.data();
  a.seen_dims = x.dim() - 1;
  a.seen_stride = strides.back();
  parallel(a.rows, a.keys, [&](int64_t begin, int64_t end) { kernels().masked_softmax(a, begin, end); });
  return out;
}

// Without a mask: where a key is not seen the probability is 0, and so is the gradient.
Tensor masked_softmax_backward(const Tensor& grad, const Tensor& output, double scale) {
  const Tensor y = dense(output), g = dense(grad, output.scalar_type());
  Softmax a{};
  a.type = type_of(y);
  a.queries = 1;
  a.keys = y.size(y.dim() - 1);
  a.rows = a.keys ? y.numel() / a.keys : 0;
  a.rows_per_batch = std::max<int64_t>(1, a.rows);
  a.scale = scale;
  a.past_bytes = kPastBytes;
  Tensor out = empty(y);
  a.x = g.const_data_ptr();
  a.y = y.const_data_ptr();
  a.out = out.mutable_data_ptr();
  parallel(a.rows, a.keys, [&](int64_t begin, int64_t end) { kernels().causal_softmax_backward(a, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CPU, m) {
  m.impl("causal_softmax", TORCH_BOX(&causal_softmax));
  m.impl("causal_softmax_backward", TORCH_BOX(&causal_softmax_backward));
  m.impl("masked_softmax", TORCH_BOX(&masked_softmax));
  m.impl("masked_softmax_backward", TORCH_BOX(&masked_softmax_backward));
}

}  // namespace slw
