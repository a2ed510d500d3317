// Touching the scores that a causal softmax will read, in turns on several pages (see ahead.h).
#pragma once

#include "ahead.h"

namespace slw {
namespace SLW_ISA {

// Goes through the seen keys of blocks of rows, two blocks ahead of who reads them. A block is as many stretches as there
// are streams, each a page of whole rows or a longer row. Call at(row) before a row is read, and step() for each line.
template <class T, int Arrays> class CausalAhead {
 public:
  template <class... From> CausalAhead(const Softmax& a, int64_t begin, int64_t end, From... from)
      : from_{static_cast<const char*>(from)...}, row_bytes_(a.keys * sizeof(T)), queries_(a.queries),
        before_(1 + a.keys - a.queries), end_(end), rows_(most(1, kPage / row_bytes_)) {
    start(begin + 2 * kStreams * rows_);
  }
  void at(int64_t row) {
    if (row < block_ - kStreams * rows_) return;
    for (Stretch& s : stretches_)
      while (s.next < s.stop) touch(s);
    start(block_ + kStreams * rows_);
  }
  void step() {
    Stretch& s = stretches_[turn_++ % kStreams];
    if (s.next < s.stop) touch(s);
  }

 private:
  struct Stretch { int64_t next, stop, row, query, last; };  // bytes of the row at hand; rows

  void start(int64_t block) {
    block_ = block;
    for (int64_t i = 0; i < kStreams; ++i) {
      Stretch& s = stretches_[i];
      s.row = block + i * rows_;
      s.last = least(s.row + rows_, end_);
      s.query = s.row % queries_;
      open(s);
    }
  }
  // The next row with keys that are seen; none: nothing is left to touch.
  void open(Stretch& s) {
    s.next = s.stop = 0;
    for (; s.row < s.last && s.next >= s.stop; ++s.row, s.query = s.query + 1 < queries_ ? s.query + 1 : 0) {
      s.next = s.row * row_bytes_;
      s.stop = s.next + (s.query + before_) * static_cast<int64_t>(sizeof(T));
    }
  }
  void touch(Stretch& s) {
    for (const char* from : from_) prefetch(from + s.next);
    s.next += kLine;
    if (s.next >= s.stop) open(s);
  }

  const char* from_[Arrays];
  int64_t row_bytes_, queries_, before_, end_, rows_, block_ = 0;
  uint32_t turn_ = 0;
  Stretch stretches_[kStreams];
};

}  // namespace SLW_ISA
}  // namespace slw
