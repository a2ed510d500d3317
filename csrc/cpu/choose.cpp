// Picks the kernels of the best instruction set that the processor has, once; a caller may pick another (tests do).
#include <atomic>
#include <cstring>

#include "args.h"

namespace slw {
namespace scalar { extern const Kernels table; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
#endif

namespace {

bool runs(const Kernels& table) {
#if defined(__x86_64__)
  if (&table == &avx512::table)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
  if (&table == &avx2::table)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c");
#endif
  return true;
}

#if defined(__x86_64__)
const Kernels* const kTables[] = {&avx512::table, &avx2::table, &scalar::table};
#else
const Kernels* const kTables[] = {&scalar::table};
#endif

const Kernels* best() {
  for (const Kernels* table : kTables)
    if (runs(*table)) return table;
  return &scalar::table;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{best()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

}  // namespace slw

// The name of the instruction set in use.
extern "C" __attribute__((visibility("default"))) const char* megatron_slw_isa() { return slw::kernels().name; }

// Uses another instruction set; 0 where it is unknown or the processor lacks it.
extern "C" __attribute__((visibility("default"))) int megatron_slw_use_isa(const char* name) {
  for (const slw::Kernels* table : slw::kTables)
    if (std::strcmp(table->name, name) == 0 && slw::runs(*table)) {
      slw::chosen().store(table);
      return 1;
    }
  return 0;
}
