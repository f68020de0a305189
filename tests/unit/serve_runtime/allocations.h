#pragma once

#include <atomic>
#include <cstddef>

/// Calls of operator new in this executable so far, of all threads (runtime_test.cc counts them).
extern std::atomic<std::size_t> allocations;
