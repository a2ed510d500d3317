// Between PyTorch's tensors (its stable ABI alone) and plain pointers and sizes.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/args.h"

namespace slw {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Outputs from here on are written past the caches: smaller ones are still there when the next operator reads them.
constexpr int64_t kPastBytes = int64_t(8) << 20;
// Elements of work that are worth a thread.
constexpr int64_t kGrain = 16384;

inline Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Half: return Type::f16;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Double: return Type::f64;
    default: STD_TORCH_CHECK(false, "the operators take float32, float16, bfloat16 and float64");
  }
}
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline size_t compute_size(const Tensor& x) { return x.scalar_type() == ScalarType::Double ? 8 : 4; }

// An uninitialized contiguous tensor on the device of `like`.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type, like.get_device_index(),
      &handle));
  return Tensor(handle);
}
inline std::vector<int64_t> sizes_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }
inline Tensor empty(const Tensor& like) { return empty(like, sizes_of(like), like.scalar_type()); }

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline Tensor dense(const Tensor& x, ScalarType type) {
  return dense(x.scalar_type() == type ? x : torch::stable::to(x, type));
}
inline std::optional<Tensor> dense(const std::optional<Tensor>& x, ScalarType type) {
  return x.has_value() ? std::optional<Tensor>(dense(*x, type)) : std::nullopt;
}
inline const void* pointer(const std::optional<Tensor>& x) { return x.has_value() ? x->const_data_ptr() : nullptr; }

// f(begin, end) over `count` items of `work` elements each, on PyTorch's threads.
template <class F> void parallel(int64_t count, int64_t work, const F& f) {
  if (count > 0) torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)), f);
}

// Rows of a block whose column sums are added up by themselves: it depends on sizes alone, so that sums have the same
// bits with any number of threads.
inline int64_t block_rows(int64_t rows) { return std::max<int64_t>(16, (rows + 63) / 64); }
inline int64_t block_count(int64_t rows) { return (rows + block_rows(rows) - 1) / block_rows(rows); }

// The sum over blocks of partial (blocks, sets, columns), set `set`, in the type of `like`.
Tensor sum_blocks(const Tensor& partial, int64_t set, const Tensor& like);

}  // namespace slw
