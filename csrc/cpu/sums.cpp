// Adds up the column sums of blocks of rows.
#include "../tensors.h"

namespace slw {
namespace {

template <class S> void add_up(const Tensor& partial, int64_t set, Tensor& out) {
  const int64_t blocks = partial.size(0), sets = partial.size(1), columns = partial.size(2);
  const S* from = static_cast<const S*>(partial.const_data_ptr()) + set * columns;
  S* to = static_cast<S*>(out.mutable_data_ptr());
  parallel(columns, blocks, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) to[j] = 0;
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t j = begin; j < end; ++j) to[j] += from[b * sets * columns + j];
  });
}

}  // namespace

Tensor sum_blocks(const Tensor& partial, int64_t set, const Tensor& like) {
  Tensor out = empty(partial, {partial.size(2)}, partial.scalar_type());
  if (partial.scalar_type() == ScalarType::Double) add_up<double>(partial, set, out);
  else add_up<float>(partial, set, out);
  return out.scalar_type() == like.scalar_type() ? out : torch::stable::to(out, like.scalar_type());
}

}  // namespace slw
