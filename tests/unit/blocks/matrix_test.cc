#include "common/blocks/matrix.h"

#include <algorithm>
#include <cmath>

#include "common/core/random.h"
#include "tests/support/support.h"

namespace retort {
namespace {

std::vector<float> gaussian(std::size_t n, RandomSource& random) {
  std::vector<float> out(n);
  for (float& x : out)
    x = static_cast<float>(std::sqrt(-2 * std::log(1 - random.next_unit())) *
                           std::cos(6.2831853 * random.next_unit()));
  return out;
}

/// Some of the values become 0.
void thin_out(std::vector<float>& values, double density, RandomSource& random) {
  for (float& x : values)
    if (random.next_unit() >= density) x = 0;
}

std::vector<float> decoded(TensorType type, std::uint64_t rows, std::uint64_t columns,
                           std::span<const std::byte> bytes) {
  std::vector<float> out(rows * columns);
  decode_rows(type, rows, columns, bytes, 0, out);
  return out;
}

double squared_error(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum;
}

constexpr TensorType kOwn[] = {TensorType::kSparseQ8, TensorType::kSparse24Q8, TensorType::kCodebook4,
                               TensorType::kCodebook8};

TEST(Matrix, EveryFormatTellsItsSizeAndDecodesRowByRow) {
  SeededRandom random(1);
  for (const TensorType type :
       {TensorType::kSparseQ8, TensorType::kSparse24Q8, TensorType::kCodebook4, TensorType::kCodebook8,
        TensorType::kF32, TensorType::kQ8_0, TensorType::kQ4K})
    for (int i = 0; i < 12; ++i) {
      const std::uint64_t rows = 1 + random.next_u64() % 40,
                          columns = (1 + random.next_u64() % 5) * info(type).block_values +
                                    (info(type).block_values == 1 ? random.next_u64() % 60 : 0);
      std::vector<float> values = gaussian(rows * columns, random);
      thin_out(values, random.next_unit(), random);
      const std::vector<std::byte> bytes = encode_matrix(type, rows, columns, values);
      EXPECT_EQ(matrix_bytes(type, rows, columns, bytes), bytes.size()) << info(type).name;
      EXPECT_FALSE(matrix_fault(type, rows, columns, bytes).has_value());
      EXPECT_LE(bytes.size(), most_matrix_bytes(type, rows, columns)) << info(type).name;
      const std::vector<float> all = decoded(type, rows, columns, bytes);
      std::vector<float> row(columns);
      const std::uint64_t r = random.next_u64() % rows;
      decode_rows(type, rows, columns, bytes, r, row);
      EXPECT_TRUE(std::equal(row.begin(), row.end(), all.begin() + static_cast<std::ptrdiff_t>(r * columns)));
    }
}

TEST(Matrix, RowsThatNoBlockDividesFallBack) {
  for (const TensorType type : {TensorType::kSparseQ8, TensorType::kSparse24Q8}) {
    EXPECT_FALSE(fits(type, 48));
    EXPECT_EQ(stored_type(type, 48), TensorType::kF16);
    EXPECT_EQ(stored_type(type, 64), type);
  }
  EXPECT_EQ(stored_type(TensorType::kCodebook4, 47), TensorType::kCodebook4);
  EXPECT_FALSE(row_bytes(TensorType::kSparseQ8, 64).has_value());  // rows do not stand by themselves
  EXPECT_EQ(row_bytes(TensorType::kSparse24Q8, 64), 44u);
  for (const TensorType type : kOwn) EXPECT_EQ(tensor_type_from(info(type).name), type);
}

TEST(Sparse, ValuesAreThoseOfQ8_0AndNothingElseIsStored) {
  SeededRandom random(2);
  const std::uint64_t rows = 9, columns = 96;
  std::vector<float> values = gaussian(rows * columns, random);
  thin_out(values, 0.5, random);
  const auto dense = encode_matrix(TensorType::kQ8_0, rows, columns, values),
             sparse = encode_matrix(TensorType::kSparseQ8, rows, columns, values);
  const auto wanted = decoded(TensorType::kQ8_0, rows, columns, dense);
  EXPECT_EQ(decoded(TensorType::kSparseQ8, rows, columns, sparse), wanted);
  const auto kept =
      static_cast<std::size_t>(std::count_if(wanted.begin(), wanted.end(), [](float x) { return x != 0; }));
  EXPECT_EQ(sparse.size(), 4 * (rows + 1) + rows * 3 * 6 + kept);
}

TEST(Sparse, HalfTheWeightsTakeTwoThirdsOfTheBytes) {
  SeededRandom random(3);
  const std::uint64_t rows = 256, columns = 256;
  std::vector<float> values = gaussian(rows * columns, random);
  thin_out(values, 0.5, random);
  const auto bits = [&](TensorType type) {
    return 8.0 * static_cast<double>(encode_matrix(type, rows, columns, values).size()) /
           static_cast<double>(rows * columns);
  };
  EXPECT_LT(bits(TensorType::kSparseQ8), 5.7);
  EXPECT_DOUBLE_EQ(bits(TensorType::kSparse24Q8), 5.5);
  EXPECT_LT(bits(TensorType::kCodebook4), 4.1);
  EXPECT_LT(bits(TensorType::kCodebook8), 8.1);
}

TEST(Sparse, TwoOfFourKeepsTheLargest) {
  std::vector<float> values(32);
  for (std::size_t g = 0; g < 8; ++g)
    values[4 * g] = 1, values[4 * g + 1] = -3, values[4 * g + 2] = 2, values[4 * g + 3] = 0.5f;
  auto out = decoded(TensorType::kSparse24Q8, 1, 32, encode_matrix(TensorType::kSparse24Q8, 1, 32, values));
  for (std::size_t g = 0; g < 8; ++g) {
    EXPECT_EQ(out[4 * g], 0);
    EXPECT_NEAR(out[4 * g + 1], -3, 1e-3);
    EXPECT_NEAR(out[4 * g + 2], 2, 2e-2);
    EXPECT_EQ(out[4 * g + 3], 0);
  }
  std::vector<float> weights(32, 1);
  for (std::size_t g = 0; g < 8; ++g) weights[4 * g + 3] = 1000;  // the smallest counts most
  out =
      decoded(TensorType::kSparse24Q8, 1, 32, encode_matrix(TensorType::kSparse24Q8, 1, 32, values, weights));
  EXPECT_NEAR(out[3], 0.5, 2e-2);
  EXPECT_EQ(out[2], 0);
}

TEST(Sparse, LiesAreFound) {
  SeededRandom random(4);
  const std::uint64_t rows = 5, columns = 64;
  std::vector<float> values = gaussian(rows * columns, random);
  thin_out(values, 0.5, random);
  const auto bytes = encode_matrix(TensorType::kSparseQ8, rows, columns, values);
  EXPECT_FALSE(matrix_bytes(TensorType::kSparseQ8, rows, columns, std::span(bytes).first(20)).has_value());
  EXPECT_FALSE(matrix_bytes(TensorType::kSparseQ8, UINT64_MAX / 4, columns, bytes).has_value());
  EXPECT_FALSE(matrix_bytes(TensorType::kSparseQ8, rows, 33, bytes).has_value());
  for (const std::size_t at : {std::size_t{0}, std::size_t{8}, 4 * (rows + 1)}) {
    auto changed = bytes;
    changed[at] ^= std::byte{1};
    EXPECT_TRUE(matrix_fault(TensorType::kSparseQ8, rows, columns, changed).has_value()) << at;
  }
  const auto codebook = encode_matrix(TensorType::kCodebook4, rows, columns, values);
  auto changed = codebook;
  changed[0] = std::byte{5};  // five rows a group: no kernel takes that
  EXPECT_FALSE(matrix_bytes(TensorType::kCodebook4, rows, columns, changed).has_value());
  EXPECT_FALSE(matrix_bytes(TensorType::kCodebook4, UINT64_MAX, columns, codebook).has_value());
}

TEST(Codebook, BeatsEvenStepsAndFollowsWeights) {
  SeededRandom random(5);
  const std::uint64_t rows = 64, columns = 256;
  const std::vector<float> values = gaussian(rows * columns, random);
  const auto error = [&](TensorType type) {
    return squared_error(values, decoded(type, rows, columns, encode_matrix(type, rows, columns, values))) /
           static_cast<double>(values.size());
  };
  // The best 16 levels of a normal distribution leave 0.00950 of its variance, evenly spaced ones 0.01154
  // [Max 1960, tables I and II]; Lloyd's rounds end near the best.
  EXPECT_LT(error(TensorType::kCodebook4), 0.0108);
  EXPECT_LT(error(TensorType::kCodebook8), 1e-4);

  // Values that count more are met better.
  std::vector<float> weights(values.size());
  double plain = 0, weighted = 0;
  for (std::size_t i = 0; i < values.size(); ++i) weights[i] = values[i] > 1.5f ? 100.0f : 1.0f;
  const auto a = decoded(TensorType::kCodebook4, rows, columns,
                         encode_matrix(TensorType::kCodebook4, rows, columns, values)),
             b = decoded(TensorType::kCodebook4, rows, columns,
                         encode_matrix(TensorType::kCodebook4, rows, columns, values, weights));
  for (std::size_t i = 0; i < values.size(); ++i) {
    plain += static_cast<double>(weights[i]) * std::pow(static_cast<double>(values[i] - a[i]), 2);
    weighted += static_cast<double>(weights[i]) * std::pow(static_cast<double>(values[i] - b[i]), 2);
  }
  EXPECT_LT(weighted, 0.6 * plain);
}

TEST(Codebook, FewDistinctValuesAreMetExactly) {
  std::vector<float> values;
  for (int i = 0; i < 333; ++i) values.push_back(static_cast<float>(i % 7) - 2.5f);
  EXPECT_EQ(decoded(TensorType::kCodebook4, 9, 37, encode_matrix(TensorType::kCodebook4, 9, 37, values)),
            values);
  const std::vector<float> same(64, 0.25f), nothing(64, 0.0f);
  for (const TensorType type : {TensorType::kCodebook4, TensorType::kCodebook8}) {
    EXPECT_EQ(decoded(type, 2, 32, encode_matrix(type, 2, 32, same)), same);
    EXPECT_EQ(decoded(type, 2, 32, encode_matrix(type, 2, 32, nothing)), nothing);
  }
}

TEST(Matrix, WhatIsNotFiniteEncodesAsZero) {
  std::vector<float> values(64, 1.0f);
  values[3] = NAN, values[40] = INFINITY;
  for (const TensorType type : kOwn)
    for (const float x : decoded(type, 2, 32, encode_matrix(type, 2, 32, values)))
      EXPECT_TRUE(std::isfinite(x)) << info(type).name;
}

}  // namespace
}  // namespace retort
