// Touching what will be read next, in turns on several pages.
//
// A processor fetches ahead by itself, one stream within each page of 4 KB. One stream brings less than memory has to
// give: a copy whose next four pages are touched in turns is 1.2 times as fast as a memcpy. And where lines are left out,
// as in the triangle of a causal softmax, it fetches them all the same, which it does less in turns.
#pragma once

#include "vec.h"

namespace slw {
namespace SLW_ISA {

constexpr int64_t kLine = 64, kPage = 4096, kStreams = 4, kTurn = kStreams * kPage;

// Whether a line begins with the register at column j, a multiple of its lanes, as far as rows begin with lines.
template <class T> inline bool starts_line(int64_t j) {
  constexpr int64_t L = kLanes<Wide<T>>, registers = most(1, kLine / int64_t(L * sizeof(T)));
  return j / L % registers == 0;
}

// Goes through so many arrays, kStreams pages at a time, ahead of who reads them in any order within `reach` bytes.
// Call step() for each line that was read of each. Copy it to the stack before a loop: in memory it waits for itself.
template <int Arrays> class Ahead {
 public:
  template <class... From> explicit Ahead(int64_t reach, From... from)
      : blocks_{(reinterpret_cast<uintptr_t>(from) + reach) / kTurn * kTurn + kTurn...} {}
  void step() {
    const uint64_t turn = count_ / (kTurn / kLine), page = count_ % kStreams, line = count_ / kStreams % (kPage / kLine);
    for (const uintptr_t block : blocks_)
      prefetch(reinterpret_cast<const void*>(block + turn * kTurn + page * kPage + line * kLine));
    ++count_;
  }
  // As many steps as there are streams at once, which is cheaper; not mixed with single ones.
  void steps() {
    const uint64_t turn = count_ / (kTurn / kLine), line = count_ / kStreams % (kPage / kLine);
    for (const uintptr_t block : blocks_)
      for (int64_t page = 0; page < kStreams; ++page)
        prefetch(reinterpret_cast<const void*>(block + turn * kTurn + line * kLine + page * kPage));
    count_ += kStreams;
  }

 private:
  uintptr_t blocks_[Arrays];
  uint64_t count_ = 0;
};

}  // namespace SLW_ISA
}  // namespace slw
