#include "agent/serve/kernels/own_formats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "common/blocks/matrix.h"
#include "common/core/random.h"
#include "tests/support/support.h"

namespace retort {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Inputs {
  std::vector<float> f32;
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  std::vector<std::int32_t> start, half_start;
  kernels::Activations activations;
};

Inputs inputs(std::uint32_t count, std::uint32_t columns, bool quantized, RandomSource& random) {
  Inputs in;
  in.f32.resize(std::size_t{count} * columns);
  for (float& x : in.f32) x = static_cast<float>(2 * random.next_unit() - 1);
  if (quantized) {
    const std::size_t blocks = std::size_t{count} * columns / 32;
    in.q.resize(in.f32.size());
    in.scale.resize(blocks);
    in.start.resize(blocks);
    in.half_start.resize(2 * blocks);
    for (std::uint32_t t = 0; t < count; ++t) {
      const std::size_t block = std::size_t{t} * columns / 32;
      kernels::quantize_q8(in.f32.data() + std::size_t{t} * columns, columns,
                           in.q.data() + std::size_t{t} * columns, in.scale.data() + block,
                           in.start.data() + block, in.half_start.data() + 2 * block);
    }
  }
  in.activations = {count,           columns,         in.f32.data(),       in.q.data(),
                    in.scale.data(), in.start.data(), in.half_start.data()};
  return in;
}

TEST(OwnFormats, EveryInstructionSetAgreesWithTheReference) {
  SeededRandom random(1);
  const std::vector<std::string> sets = kernels::instruction_sets();
  for (int i = 0; i < 120; ++i) {
    const TensorType type = std::array{TensorType::kSparseQ8, TensorType::kSparse24Q8, TensorType::kCodebook4,
                                       TensorType::kCodebook8}[static_cast<std::size_t>(i % 4)];
    const bool quantized = info(type).block_values > 1;
    const auto rows = static_cast<std::uint32_t>(1 + random.next_u64() % 70),
               columns = static_cast<std::uint32_t>(quantized ? 32 * (1 + random.next_u64() % 12)
                                                              : 1 + random.next_u64() % 600),
               count = static_cast<std::uint32_t>(1 + random.next_u64() % 20);
    std::vector<float> values(std::size_t{rows} * columns);
    const double density = random.next_unit();
    for (float& x : values)
      x = random.next_unit() < density ? static_cast<float>(2 * random.next_unit() - 1) : 0.0f;
    const std::vector<std::byte> bytes = encode_matrix(type, rows, columns, values);
    decode_rows(type, rows, columns, bytes, 0, values);
    const Inputs in = inputs(count, columns, quantized, random);
    std::vector<float> bias(rows);
    for (float& x : bias) x = static_cast<float>(random.next_unit());
    std::vector<double> expected(std::size_t{count} * rows);
    for (std::uint32_t t = 0; t < count; ++t)
      for (std::uint32_t r = 0; r < rows; ++r) {
        double sum = static_cast<double>(bias[r]);
        for (std::uint32_t c = 0; c < columns; ++c) {
          const std::size_t at = std::size_t{t} * columns + c;
          const double x = quantized ? static_cast<double>(in.q[at]) * static_cast<double>(in.scale[at / 32])
                                     : static_cast<double>(in.f32[at]);
          sum += static_cast<double>(values[std::size_t{r} * columns + c]) * x;
        }
        expected[std::size_t{t} * rows + r] = sum;
      }
    const kernels::Matrix matrix{type, rows, columns, bytes.data()};
    EXPECT_EQ(kernels::stored_bytes(matrix), bytes.size());
    for (const std::string& set : sets) {
      ASSERT_TRUE(kernels::use_instruction_set(set));
      const std::size_t packed_size = kernels::packed_bytes(matrix);
      const std::unique_ptr<std::byte, Free> memory(
          static_cast<std::byte*>(std::aligned_alloc(64, (packed_size + 127) / 64 * 64)));
      std::fill_n(memory.get(), packed_size, std::byte{0});
      for (const bool pack : {true, false}) {
        if (pack && packed_size == 0) continue;
        const kernels::Matrix used = pack ? kernels::pack(matrix, memory.get(), true) : matrix;
        std::vector<float> out(expected.size(), -1);
        // In two parts, as two threads would.
        const std::uint32_t middle = rows / 32 * 16;
        for (const auto& [begin, end] : {std::pair{0u, middle}, std::pair{middle, rows}})
          if (begin < end)
            kernels::matmul(used, in.activations, begin, end, {out.data(), rows, bias.data(), false});
        for (std::size_t j = 0; j < out.size(); ++j)
          ASSERT_NEAR(static_cast<double>(out[j]), expected[j], 2e-4 * (1 + std::sqrt(columns)))
              << info(type).name << " " << rows << "×" << columns << ", " << count << " tokens, " << set
              << (pack ? ", packed" : "");
        // A token's sums do not depend on what it is computed with.
        Inputs one = in;
        one.activations.count = 1;
        std::vector<float> alone(rows, 1);
        kernels::matmul(used, one.activations, 0, rows, {alone.data(), rows, bias.data(), true});
        for (std::uint32_t r = 0; r < rows; ++r) ASSERT_EQ(alone[r], out[r] + 1) << r;
      }
    }
    ASSERT_TRUE(kernels::use_instruction_set(sets.front()));
  }
}

}  // namespace
}  // namespace retort
