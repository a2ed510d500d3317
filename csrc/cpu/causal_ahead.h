// Touching the scores that a causal softmax will read, in turns on several pages (see ahead.h), and no others.
#pragma once

#include "ahead.h"

namespace slw {
namespace SLW_ISA {

// Goes through the seen keys of blocks of rows, two blocks ahead of who reads them. A block is as many stretches as there
// are streams, each a page of whole rows or a longer row; all are at the same row and column of their own. Call at(row)
// before a row is read, and steps() for as many lines as there are streams.
template <class T, int Arrays> class CausalAhead {
 public:
  template <class... From> CausalAhead(const Softmax& a, int64_t begin, int64_t end, From... from)
      : from_{static_cast<const char*>(from)...}, row_bytes_(a.keys * sizeof(T)), queries_(a.queries),
        before_(1 + a.keys - a.queries), end_(end), rows_(most(1, kPage / row_bytes_)) {
    start(begin + 2 * kStreams * rows_);
  }
  void at(int64_t row) {
    if (row < block_ - kStreams * rows_) return;
    while (row_ < rows_) steps();
    start(block_ + kStreams * rows_);
  }
  void steps() {
    if (row_ >= rows_) return;
    for (const char* from : from_)
      for (int64_t i = 0; i < kStreams; ++i) prefetch(from + i * rows_ * row_bytes_ + next_);
    next_ += kLine;
    if (next_ >= stop_) open(row_ + 1);
  }

 private:
  void start(int64_t block) {
    block_ = block;
    open(0);
  }
  // Row `row` of each stretch, up to the last key that one of them sees.
  void open(int64_t row) {
    int64_t seen = 1;
    for (int64_t i = 0; i < kStreams; ++i) seen = most(seen, (block_ + i * rows_ + row) % queries_ + before_);
    row_ = block_ + row < end_ ? row : rows_;
    next_ = (block_ + row) * row_bytes_;
    stop_ = next_ + seen * static_cast<int64_t>(sizeof(T));
  }

  const char* from_[Arrays];
  int64_t row_bytes_, queries_, before_, end_, rows_, block_ = 0, row_ = 0, next_ = 0, stop_ = 0;
};

}  // namespace SLW_ISA
}  // namespace slw
