// What a matrix's format costs: time of a product and bytes, of each format in turn, so that what else the
// machine does meets them alike. format_speed [ROWS COLUMNS [DENSITY]]; one thread.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "agent/serve/kernels/own_formats.h"
#include "common/blocks/matrix.h"
#include "common/core/random.h"

using namespace retort;

namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<std::byte, Free>;

struct Candidate {
  TensorType type;
  std::vector<std::byte> file;
  Memory memory;
  kernels::Matrix matrix;
  std::size_t used = 0;
  double seconds[2] = {1e9, 1e9};  ///< of one token, of 16
};

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i, double otherwise) { return argc > i ? std::atof(argv[i]) : otherwise; };
  const auto rows = static_cast<std::uint32_t>(number(1, 2048)),
             columns = static_cast<std::uint32_t>(number(2, 1024));
  const double density = number(3, 0.5);
  constexpr std::uint32_t kTokens = 16;
  if (rows == 0 || columns == 0 || columns % 256 != 0) {
    std::cerr << "usage: format_speed [ROWS COLUMNS [DENSITY]], COLUMNS a multiple of 256\n";
    return 2;
  }
  SeededRandom random(1);
  std::vector<float> values(std::size_t{rows} * columns), x(std::size_t{kTokens} * columns),
      out(std::size_t{kTokens} * rows);
  for (float& v : values)
    v = random.next_unit() < density ? static_cast<float>(2 * random.next_unit() - 1) : 0.0f;
  for (float& v : x) v = static_cast<float>(2 * random.next_unit() - 1);
  const std::size_t blocks = x.size() / 32;
  std::vector<std::int8_t> q(x.size());
  std::vector<float> scale(blocks);
  std::vector<std::int32_t> start(blocks), half_start(2 * blocks);
  for (std::size_t t = 0; t < kTokens; ++t) {
    const std::size_t block = t * columns / 32;
    kernels::quantize_q8(x.data() + t * columns, columns, q.data() + t * columns, scale.data() + block,
                         start.data() + block, half_start.data() + 2 * block);
  }
  std::vector<Candidate> candidates;
  for (const TensorType type : {TensorType::kF16, TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kSparseQ8,
                                TensorType::kSparse24Q8, TensorType::kCodebook4, TensorType::kCodebook8}) {
    Candidate c;
    c.type = type;
    c.file = encode_matrix(type, rows, columns, values);
    c.matrix = {type, rows, columns, c.file.data()};
    c.used = kernels::packed_bytes(c.matrix);
    if (c.used != 0) {
      c.memory.reset(static_cast<std::byte*>(std::aligned_alloc(64, (c.used + 63) / 64 * 64)));
      std::fill_n(c.memory.get(), c.used, std::byte{0});
      c.matrix = kernels::pack(c.matrix, c.memory.get(), true);
    } else {
      c.used = c.file.size();
    }
    candidates.push_back(std::move(c));
  }
  for (int round = 0; round < 15; ++round)
    for (Candidate& c : candidates)
      for (const bool many : {false, true}) {
        const std::uint32_t count = many ? kTokens : 1;
        using clock = std::chrono::steady_clock;
        const auto begin = clock::now();
        int passes = 0;
        do {
          kernels::matmul(c.matrix,
                          {count, columns, x.data(), q.data(), scale.data(), start.data(), half_start.data()},
                          0, rows, {out.data(), rows, nullptr, false});
          ++passes;
        } while (clock::now() - begin < std::chrono::milliseconds(20));
        const double seconds = std::chrono::duration<double>(clock::now() - begin).count() / passes;
        c.seconds[many] = std::min(c.seconds[many], seconds);
      }
  const double weights = static_cast<double>(values.size());
  std::cout << fmt::format("{} × {}, {:.0f} % of the weights, {} kernels, the shortest of 15\n", rows,
                           columns, 100 * density, kernels::instruction_set())
            << fmt::format("{:<12} {:>10} {:>12} {:>16} {:>16}\n", "format", "bits, file", "bits, memory",
                           "1 token, Gw/s", "16 tokens, Gw/s");
  for (const Candidate& c : candidates)
    std::cout << fmt::format("{:<12} {:>10.2f} {:>12.2f} {:>16.1f} {:>16.1f}\n", info(c.type).name,
                             8 * static_cast<double>(c.file.size()) / weights,
                             8 * static_cast<double>(c.used) / weights, weights / c.seconds[0] / 1e9,
                             kTokens * weights / c.seconds[1] / 1e9);
}
