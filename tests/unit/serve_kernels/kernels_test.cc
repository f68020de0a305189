#include "agent/serve/kernels/kernels.h"
#include "agent/serve/kernels/encoder.h"
#include "agent/serve/kernels/maps.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "tests/support/support.h"

namespace retort::kernels {
namespace {

using Floats = std::vector<float>;

/// Every test runs on every instruction set that this processor has.
class Kernels : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(use_instruction_set(GetParam()));
    ASSERT_EQ(instruction_set(), GetParam());
  }
  void TearDown() override { use_instruction_set(instruction_sets().front()); }
};
INSTANTIATE_TEST_SUITE_P(Sets, Kernels, ::testing::ValuesIn(instruction_sets()),
                         [](const auto& set) { return set.param; });

Floats normal(std::size_t n, std::mt19937& random, float scale = 1) {
  std::normal_distribution<float> distribution(0, scale);
  Floats out(n);
  for (float& x : out) x = distribution(random);
  return out;
}

constexpr TensorType kTypes[] = {TensorType::kF32,  TensorType::kF16,  TensorType::kBF16, TensorType::kQ8_0,
                                 TensorType::kQ4_0, TensorType::kQ3K,  TensorType::kQ4K,  TensorType::kQ5K,
                                 TensorType::kQ6K,  TensorType::kIq4Nl};
bool quantized(TensorType type) { return info(type).block_values > 1; }

/// Formats that are multiplied through the reference decoder where they are not packed: with F32 activations.
bool decoded(const Matrix& m) {
  return !m.packed && (info(m.type).block_values == 256 || m.type == TensorType::kIq4Nl);
}

/// 64-byte aligned, and exactly as long as it must be, so that a sanitizer sees reads behind it.
struct Packed {
  explicit Packed(std::size_t size)
      : bytes(static_cast<std::byte*>(std::aligned_alloc(64, (size + 63) / 64 * 64)), std::free) {
    std::memset(bytes.get(), 0, size);
  }
  std::unique_ptr<std::byte, void (*)(void*)> bytes;
};

struct Weights {
  std::vector<std::byte> bytes;
  Floats values;  ///< what they decode to
  Matrix matrix;
};

Weights weights(TensorType type, std::uint32_t rows, std::uint32_t columns, std::mt19937& random) {
  Weights w;
  const std::size_t size = *row_bytes(type, columns);
  w.bytes.resize(size * rows);
  w.values.resize(std::size_t{rows} * columns);
  for (std::uint32_t r = 0; r < rows; ++r) {
    encode_row(type, normal(columns, random), std::span(w.bytes).subspan(r * size, size));
    decode_row(type, std::span(w.bytes).subspan(r * size, size),
               std::span(w.values).subspan(std::size_t{r} * columns, columns));
  }
  w.matrix = {type, rows, columns, w.bytes.data()};
  return w;
}

/// The matrix in two parts stacked into one packed matrix, where the instruction set has a layout for it.
std::optional<Packed> packed(Weights& w, std::uint32_t first_part) {
  const std::size_t size = packed_bytes(w.matrix.type, w.matrix.rows, w.matrix.columns);
  if (size == 0) return std::nullopt;
  Packed out(size);
  Matrix first = w.matrix, second = w.matrix;
  first.rows = first_part;
  second.rows -= first_part;
  second.data += first_part * *row_bytes(w.matrix.type, w.matrix.columns);
  pack(first, 0, w.matrix.rows, out.bytes.get());
  pack(second, first_part, w.matrix.rows, out.bytes.get());
  w.matrix.data = out.bytes.get();
  w.matrix.packed = true;
  return out;
}

struct Inputs {
  Floats f32, scale;
  std::vector<std::int8_t> q8;
  std::vector<std::int32_t> start, half_start;
  Activations activations;
};

Inputs inputs(std::uint32_t count, std::uint32_t columns, std::mt19937& random) {
  Inputs x;
  x.f32 = normal(std::size_t{count} * columns, random);
  if (columns % 32 == 0) {
    x.q8.resize(x.f32.size());
    x.scale.resize(x.f32.size() / 32);
    x.start.resize(x.f32.size() / 32);
    x.half_start.resize(x.f32.size() / 16);
    for (std::uint32_t t = 0; t < count; ++t)
      quantize_q8(x.f32.data() + t * columns, columns, x.q8.data() + t * columns,
                  x.scale.data() + t * (columns / 32), x.start.data() + t * (columns / 32),
                  x.half_start.data() + t * (columns / 16));
  }
  x.activations = {count,          columns,        x.f32.data(),       x.q8.data(),
                   x.scale.data(), x.start.data(), x.half_start.data()};
  return x;
}

void check_matmul(const Weights& w, std::uint32_t granule, bool with_bias, bool add, std::mt19937& random) {
  const std::uint32_t rows = w.matrix.rows, columns = w.matrix.columns, count = 1 + random() % 27;
  const Inputs x = inputs(count, columns, random);
  const Floats bias = normal(rows, random);
  const std::size_t stride = rows + 3;
  Floats out(count * stride, 7.0f);
  const std::uint32_t begin = random() % rows / granule * granule,
                      end = std::min(
                          rows,
                          (begin + 1 + static_cast<std::uint32_t>(random()) % (rows - begin) + granule - 1) /
                              granule * granule);
  matmul(w.matrix, x.activations, begin, end, {out.data(), stride, with_bias ? bias.data() : nullptr, add});
  for (std::uint32_t t = 0; t < count; ++t)
    for (std::uint32_t r = 0; r < stride; ++r) {
      if (r < begin || r >= end) {
        EXPECT_EQ(out[t * stride + r], 7.0f) << "row " << r << " is not ours";
        continue;
      }
      double sum = (with_bias ? bias[r] : 0.0) + (add ? 7 : 0), size = 8;
      for (std::uint32_t c = 0; c < columns; ++c) {
        const double value =
            quantized(w.matrix.type) && !decoded(w.matrix)
                ? static_cast<double>(x.q8[t * columns + c]) * x.scale[(t * columns + c) / 32]
                : double{x.f32[t * columns + c]};
        sum += value * w.values[r * columns + c];
        size += std::fabs(value * w.values[r * columns + c]);
      }
      // Packed K-quants have their scales (of two numbers' product) rounded to F16.
      const double tolerance = w.matrix.packed && info(w.matrix.type).block_values == 256 ? 6e-4 : 2e-6;
      EXPECT_NEAR(out[t * stride + r], sum, tolerance * size)
          << info(w.matrix.type).name << " " << rows << "x" << columns << ", " << count << " tokens"
          << (w.matrix.packed ? ", packed" : "");
    }
}

std::uint32_t some_columns(TensorType type, std::mt19937& random) {
  const std::uint32_t block = info(type).block_values;
  return static_cast<std::uint32_t>(block == 256  ? 256 * (1 + random() % 3)
                                    : block == 32 ? 32 * (1 + random() % 9)
                                                  : 1 + random() % 200);
}

TEST_P(Kernels, MatmulAgreesWithPlainSums) {
  std::mt19937 random(1);
  for (const TensorType type : kTypes)
    for (int round = 0; round < (info(type).block_values == 256 ? 8 : 60); ++round) {
      Weights w = weights(type, 1 + random() % 400, some_columns(type, random), random);
      check_matmul(w, 1, round % 2 == 0, round % 3 == 0, random);
      if (const auto memory = packed(w, static_cast<std::uint32_t>(random() % (w.matrix.rows + 1))))
        check_matmul(w, kGroupRows, round % 2 == 0, round % 3 == 0, random);
    }
}

TEST_P(Kernels, EveryFormatIsPackedEverywhere) {
  EXPECT_EQ(packed_bytes(TensorType::kF32, 17, 3), 32u * 3 * 4);
  EXPECT_EQ(packed_bytes(TensorType::kF16, 16, 6), 16u * 6 * 2);
  EXPECT_EQ(packed_bytes(TensorType::kQ8_0, 16, 64), 16u * 2 * 34);
  EXPECT_EQ(packed_bytes(TensorType::kQ6K, 1, 256), 16u * 8 * 28);
}

TEST_P(Kernels, NeitherBatchNorSplitChangesABit) {
  std::mt19937 random(2);
  for (const TensorType type : kTypes)
    for (const bool pack_it : {false, true}) {
      const std::uint32_t rows = 300, count = 31,
                          columns = info(type).block_values == 256 ? 512
                                    : quantized(type)              ? 96
                                                                   : 77;
      Weights w = weights(type, rows, columns, random);
      std::optional<Packed> memory;
      if (pack_it && !(memory = packed(w, 50))) continue;
      const Inputs x = inputs(count, columns, random);
      const std::uint32_t step = pack_it ? kGroupRows : 5;
      Floats whole(count * rows);
      matmul(w.matrix, x.activations, 0, rows, {whole.data(), rows});
      for (const std::uint32_t batch : {1u, 2u, 3u, 5u, 30u}) {
        Floats parts(count * rows);
        for (std::uint32_t t = 0; t < count; t += batch)
          for (std::uint32_t r = 0; r < rows; r += step) {
            Activations some = x.activations;
            some.count = std::min(batch, count - t), some.f32 += t * columns;
            if (quantized(type))
              some.q8 += t * columns, some.q8_scale += t * (columns / 32),
                  some.q8_start += t * (columns / 32), some.q8_half_start += t * (columns / 16);
            matmul(w.matrix, some, r, std::min(rows, r + step), {parts.data() + t * rows, rows});
          }
        EXPECT_EQ(whole, parts) << info(type).name << (pack_it ? " packed" : "") << ", by " << batch;
      }
    }
}

TEST_P(Kernels, QuantizedActivationsAreWithinHalfAStep) {
  std::mt19937 random(3);
  Floats x = normal(320, random, 3.0f);
  std::fill(x.begin() + 64, x.begin() + 96, 0.0f);
  for (std::size_t i = 96; i < 128; ++i) x[i] *= 1e9f;    // a scale beyond F16
  for (std::size_t i = 128; i < 160; ++i) x[i] *= 1e-9f;  // and one below
  std::vector<std::int8_t> q(x.size());
  Floats scale(x.size() / 32);
  std::vector<std::int32_t> start(x.size() / 32), half_start(x.size() / 16);
  quantize_q8(x.data(), 320, q.data(), scale.data(), start.data(), half_start.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_LE(std::abs(q[i]), 127);
    // The scale is rounded to F16 after the values.
    EXPECT_NEAR(q[i] * scale[i / 32], x[i], scale[i / 32] * (0.5001f + 127.0f / 2048));
    if (i % 32 == 0) {
      EXPECT_EQ(start[i / 32], -8 * std::accumulate(&q[i], &q[i] + 32, 0));
      EXPECT_EQ(half_start[i / 16 + 1], -8 * std::accumulate(&q[i] + 16, &q[i] + 32, 0));
    }
  }
  EXPECT_EQ(scale[2], 0.0f);
  EXPECT_EQ(scale[0], f16_to_f32(f32_to_f16(scale[0])));
}

TEST_P(Kernels, NormsAndActivationsAgreeWithTheirDefinitions) {
  std::mt19937 random(4);
  for (const std::uint32_t n : {1u, 3u, 8u, 16u, 47u, 48u, 288u, 1001u}) {
    const Floats x = normal(n, random, 2), weight = normal(n, random), bias = normal(n, random);
    Floats rms(n), layer(n);
    rms_norm(x.data(), weight.data(), n, 1e-5f, rms.data());
    layer_norm(x.data(), weight.data(), bias.data(), n, 1e-5f, layer.data());
    double mean = 0, squares = 0, variance = 0;
    for (const float v : x) mean += v / n, squares += double{v} * v / n;
    for (const float v : x) variance += (v - mean) * (v - mean) / n;
    Floats gate = x, gelus = x, sum = x;
    silu_mul(gate.data(), weight.data(), n);
    gelu(gelus.data(), n);
    add(sum.data(), bias.data(), n);
    double exponentials = 0;
    for (std::uint32_t i = 0; i < n; ++i) {
      const double v = x[i];
      EXPECT_NEAR(rms[i], v / std::sqrt(squares + 1e-5) * weight[i], 1e-5 * (1 + std::fabs(rms[i])));
      EXPECT_NEAR(layer[i], (v - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i],
                  2e-5 * (1 + std::fabs(layer[i])));
      EXPECT_NEAR(gate[i], v / (1 + std::exp(-v)) * weight[i], 1e-6 * (1 + std::fabs(gate[i])));
      EXPECT_NEAR(gelus[i], 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))),
                  2e-6 * (1 + std::fabs(v)));
      EXPECT_EQ(sum[i], x[i] + bias[i]);
      exponentials += std::exp(v);
    }
    EXPECT_NEAR(log_sum_exp(x.data(), n), std::log(exponentials), 1e-5);
    const float top = *std::max_element(x.begin(), x.end());
    Floats powers(n);
    double total = 0;
    const double told = kernels::exponentials(x.data(), n, 0.7f, top, powers.data());
    for (std::uint32_t i = 0; i < n; ++i) {
      EXPECT_NEAR(powers[i], std::exp(0.7 * (x[i] - top)), 1e-6);
      total += powers[i];
    }
    EXPECT_NEAR(told, total, 1e-6 * n);
  }
}

TEST_P(Kernels, DivergenceAgreesWithItsDefinition) {
  std::mt19937 random(7);
  for (const std::size_t n : {1u, 3u, 16u, 100u, 4096u}) {
    const Floats p = normal(n, random, 3), q = normal(n, random, 3);
    const double a = log_sum_exp(p.data(), n), b = log_sum_exp(q.data(), n);
    double expected = 0;
    for (std::size_t i = 0; i < n; ++i) expected += std::exp(p[i] - a) * ((p[i] - a) - (q[i] - b));
    EXPECT_NEAR(kl_divergence(p.data(), a, q.data(), b, n), expected, 2e-5 * (1 + expected));
    EXPECT_NEAR(kl_divergence(p.data(), a, p.data(), a, n), 0, 1e-12);
    EXPECT_EQ(best(p.data(), n), static_cast<std::size_t>(std::max_element(p.begin(), p.end()) - p.begin()));
  }
  EXPECT_EQ(best(Floats(40, 1.0f).data(), 40), 0u);
  for (const std::size_t n : {1u, 7u, 40u, 1001u})
    for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
      Floats x(n, -3e38f);
      EXPECT_TRUE(all_finite(x.data(), n));
      for (const float wrong :
           {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
            std::numeric_limits<float>::quiet_NaN()}) {
        x[at] = wrong;
        EXPECT_FALSE(all_finite(x.data(), n)) << n << " " << at;
      }
    }
}

TEST_P(Kernels, ActivationsStandFarOutValues) {
  Floats x{-1e30f, -200, -50, 0, 50, 200, 1e30f}, up(7, 1.0f), y = x;
  silu_mul(x.data(), up.data(), 7);
  EXPECT_NEAR(x[1], 0, 1e-30);
  EXPECT_EQ(x[3], 0);
  EXPECT_EQ(x[5], 200);
  EXPECT_EQ(x[6], 1e30f);
  gelu(y.data(), 6);
  EXPECT_EQ(y[5], 200);
  EXPECT_NEAR(y[1], 0, 1e-30);
  const Floats logits{1000, -1000, 999};
  EXPECT_NEAR(log_sum_exp(logits.data(), 3), 1000 + std::log(1 + std::exp(-1.0)), 1e-4);
}

TEST_P(Kernels, RopeTurnsNeighbouringPairs) {
  std::mt19937 random(5);
  for (const std::uint32_t dim : {2u, 10u, 16u, 48u}) {
    const std::uint32_t heads = 3;
    const Floats x = normal(heads * dim, random);
    Floats table(2 * dim), y = x;
    for (std::uint32_t i = 0; i < dim / 2; ++i) {
      table[2 * i] = table[2 * i + 1] = std::cos(0.3f * i);
      table[dim + 2 * i] = -std::sin(0.3f * i);
      table[dim + 2 * i + 1] = std::sin(0.3f * i);
    }
    rope(y.data(), heads, dim, table.data());
    for (std::uint32_t h = 0; h < heads; ++h)
      for (std::uint32_t i = 0; i < dim / 2; ++i) {
        const float *a = &x[h * dim + 2 * i], *b = &y[h * dim + 2 * i];
        EXPECT_NEAR(b[0], a[0] * std::cos(0.3f * i) - a[1] * std::sin(0.3f * i), 1e-6);
        EXPECT_NEAR(b[1], a[0] * std::sin(0.3f * i) + a[1] * std::cos(0.3f * i), 1e-6);
      }
  }
}

const std::byte* bytes_of(const Floats& values) { return reinterpret_cast<const std::byte*>(values.data()); }

TEST_P(Kernels, AttentionAgreesWithItsDefinition) {
  std::mt19937 random(6);
  for (const std::uint32_t dim : {1u, 2u, 8u, 13u, 16u, 64u})
    for (const std::uint32_t n : {1u, 2u, 13u, 15u, 16u, 17u, 63u, 64u, 65u, 130u})
      for (std::uint32_t count = 1; count <= 2 * kAttentionTokens; ++count) {
        const std::uint32_t step = count > kAttentionTokens ? 0 : 1,
                            rows = count - (step == 0 ? kAttentionTokens : 0);
        const std::size_t stride = (n + rows - 1 + kPositionBlock - 1) / kPositionBlock * kPositionBlock;
        const std::size_t q_stride = dim + 3, out_stride = dim + 1;
        const Floats q = normal(rows * q_stride, random), k = normal(dim * stride, random),
                     v = normal(dim * stride, random);
        const auto at = [&](std::uint32_t position, std::uint32_t i) {
          return (position / kPositionBlock * dim + i) * kPositionBlock + position % kPositionBlock;
        };
        Floats scores(rows * stride), out(rows * out_stride), alone(dim);
        const float scale = 0.4f;
        const Heads heads{CacheType::kF32, bytes_of(k), bytes_of(v), 0, 1, dim};
        attention({q.data(), q_stride, rows}, heads, n, step, scale, {scores.data(), stride},
                  {out.data(), out_stride});
        for (std::uint32_t t = 0; t < rows; ++t) {
          std::vector<double> p(n + t * step);
          double total = 0;
          for (std::uint32_t j = 0; j < n + t * step; ++j) {
            double score = 0;
            for (std::uint32_t i = 0; i < dim; ++i) score += double{q[t * q_stride + i]} * k[at(j, i)];
            total += p[j] = std::exp(score * scale);
          }
          attention({q.data() + t * q_stride, q_stride, 1}, heads, n + t * step, 1, scale,
                    {scores.data(), stride}, {alone.data(), dim});
          for (std::uint32_t i = 0; i < dim; ++i) {
            double expected = 0;
            for (std::uint32_t j = 0; j < n + t * step; ++j) expected += p[j] / total * v[at(j, i)];
            EXPECT_NEAR(out[t * out_stride + i], expected, 1e-5) << dim << " wide, " << n << " positions";
            EXPECT_EQ(out[t * out_stride + i], alone[i]) << "the batch changes a bit";
          }
        }
      }
}

/// What one position's head holds in a cache, by the layout that kernels.h tells of.
Floats held(CacheType type, const std::byte* cache, std::uint32_t dim, std::uint32_t position) {
  const std::byte* const block = cache + position / kPositionBlock * cache_block_bytes(type, dim);
  Floats out(dim);
  for (std::uint32_t i = 0; i < dim; ++i) {
    const std::size_t at = std::size_t{i} * kPositionBlock + position % kPositionBlock;
    std::uint16_t half = 0;
    float scale = 0;
    switch (type) {
      case CacheType::kF32:
        std::memcpy(&out[i], block + 4 * at, 4);
        break;
      case CacheType::kF16:
        std::memcpy(&half, block + 2 * at, 2);
        out[i] = f16_to_f32(half);
        break;
      case CacheType::kQ8:
        std::memcpy(&scale, block + (std::size_t{dim} * kPositionBlock + position % kPositionBlock * 4), 4);
        out[i] = scale * static_cast<float>(std::to_integer<int>(block[at] ^ std::byte{128}) - 128);
        break;
    }
  }
  return out;
}

TEST_P(Kernels, CachesHoldWhatIsStoredAndAttentionReadsIt) {
  std::mt19937 random(8);
  for (const CacheType type : {CacheType::kF32, CacheType::kF16, CacheType::kQ8})
    for (const std::uint32_t dim : {1u, 6u, 16u, 19u, 48u, 64u}) {
      const std::uint32_t heads = 3, n = 37, blocks = 3;
      const std::size_t head_bytes = blocks * cache_block_bytes(type, dim);
      std::vector<std::byte> k(heads * head_bytes), v(heads * head_bytes);
      for (std::uint32_t position = 0, count; position < n; position += count) {
        count = std::min(n - position, static_cast<std::uint32_t>(1 + random() % kAttentionTokens));
        for (auto* cache : {&k, &v}) {
          const std::size_t wide = heads * dim + 5;
          Floats x = normal(count * wide, random, position % 5 == 0 ? 30 : 0.1f);
          if (position < 9) std::fill(x.begin(), x.begin() + dim, 0.0f);
          store({x.data(), wide, count, heads, dim}, type, position, head_bytes, cache->data());
          for (std::uint32_t t = 0; t < count; ++t)
            for (std::uint32_t head = 0; head < heads; ++head) {
              const float* const mine = &x[t * wide + head * dim];
              const Floats got = held(type, cache->data() + head * head_bytes, dim, position + t);
              float top = 0;
              for (std::uint32_t i = 0; i < dim; ++i) top = std::max(top, std::fabs(mine[i]));
              for (std::uint32_t i = 0; i < dim; ++i)
                ASSERT_NEAR(got[i], mine[i],
                            type == CacheType::kF32   ? 0
                            : type == CacheType::kF16 ? std::fabs(mine[i]) / 1024 + 1e-7f
                                                      : top / 127 * 0.5001f)
                    << dim << " wide, position " << position + t;
            }
        }
      }
      const std::size_t stride = blocks * kPositionBlock;
      const Floats q = normal(4 * dim, random);
      Floats scores(4 * stride), out(4 * dim), alone(dim);
      for (std::uint32_t head = 0; head < heads; ++head) {
        const std::byte *keys = &k[head * head_bytes], *values = &v[head * head_bytes];
        const Heads one{type, keys, values, 0, 1, dim};
        attention({q.data(), dim, 4}, one, n - 3, 1, 0.3f, {scores.data(), stride}, {out.data(), dim});
        for (std::uint32_t t = 0; t < 4; ++t) {
          std::vector<double> p(n - 3 + t), sums(dim), sizes(dim);
          double top = -1e300, total = 0;
          for (std::uint32_t j = 0; j < p.size(); ++j) {
            const Floats key = held(type, keys, dim, j);
            p[j] = 0.3 * std::inner_product(key.begin(), key.end(), &q[t * dim], 0.0);
            top = std::max(top, p[j]);
          }
          for (std::uint32_t j = 0; j < p.size(); ++j) {
            const double share = std::exp(p[j] - top);
            const Floats value = held(type, values, dim, j);
            total += share;
            for (std::uint32_t i = 0; i < dim; ++i)
              sums[i] += share * value[i], sizes[i] += share * std::fabs(value[i]);
          }
          for (std::uint32_t i = 0; i < dim; ++i)
            EXPECT_NEAR(out[t * dim + i], sums[i] / total, 3e-4 * sizes[i] / total + 1e-6);
          attention({&q[t * dim], dim, 1}, one, n - 3 + t, 1, 0.3f, {scores.data(), stride},
                    {alone.data(), dim});
          EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &out[t * dim])) << "the batch changes a bit";
        }
      }
      // Heads together give what each gives alone, with any number of queries.
      for (std::uint32_t count = 1; count <= kAttentionTokens; ++count) {
        const Floats queries = normal(heads * count * dim, random);
        Floats rows(kScoreRows * stride), together(heads * count * dim), each = together;
        attention({queries.data(), dim, count}, {type, k.data(), v.data(), head_bytes, heads, dim}, n, 0,
                  0.3f, {rows.data(), stride}, {together.data(), dim});
        for (std::uint32_t head = 0; head < heads; ++head)
          for (std::uint32_t t = 0; t < count; ++t) {
            const std::size_t at = (head * count + t) * dim;
            attention({&queries[at], dim, 1},
                      {type, &k[head * head_bytes], &v[head * head_bytes], head_bytes, 1, dim}, n, 0, 0.3f,
                      {rows.data(), stride}, {&each[at], dim});
          }
        EXPECT_EQ(together, each);
      }
    }
}

TEST_P(Kernels, AttentionAllIsTheDefinition) {
  std::mt19937 random(12);
  for (const auto& [n, head_dim] : {std::pair(1u, 32u), std::pair(3u, 7u), std::pair(16u, 64u),
                                    std::pair(33u, 32u), std::pair(70u, 20u)}) {
    const std::size_t stride = 3 * head_dim + 5, out_stride = head_dim + 3;
    const Floats rows = normal(stride * n, random, 2);
    const float *q = rows.data(), *k = q + head_dim, *v = k + head_dim;
    const float scale = 1 / std::sqrt(float(head_dim));
    // 64-byte aligned, and as long as it must be.
    const Packed scratch(4 * attention_all_scratch(n, head_dim));
    Floats out(out_stride * n, 7.0f);
    attention_all(q, k, v, stride, n, head_dim, scale, reinterpret_cast<float*>(scratch.bytes.get()),
                  out.data(), out_stride);
    for (std::uint32_t i = 0; i < n; ++i) {
      std::vector<double> weight(n);
      double sum = 0;
      for (std::uint32_t j = 0; j < n; ++j) {
        double dot = 0;
        for (std::uint32_t d = 0; d < head_dim; ++d)
          dot += double(q[i * stride + d]) * double(k[j * stride + d]);
        sum += weight[j] = std::exp(dot * double(scale));
      }
      for (std::uint32_t d = 0; d < head_dim; ++d) {
        double wanted = 0;
        for (std::uint32_t j = 0; j < n; ++j) wanted += weight[j] / sum * double(v[j * stride + d]);
        EXPECT_NEAR(out[i * out_stride + d], wanted, 1e-5) << n << " " << head_dim;
      }
      for (std::size_t d = head_dim; d < out_stride; ++d) EXPECT_EQ(out[i * out_stride + d], 7.0f);
    }
  }
}

TEST_P(Kernels, GeluAndTanhAreTheDefinitions) {
  for (const std::size_t n : {1ul, 15ul, 16ul, 1001ul}) {
    Floats x(n);
    for (std::size_t i = 0; i < n; ++i) x[i] = (float(i) - float(n) / 2) * 0.05f;
    if (n > 3) x[0] = -1e4f, x[1] = 1e4f, x[2] = 0;
    Floats gelu = x, tanh = x;
    gelu_erf(gelu.data(), n);
    hyperbolic_tangent(tanh.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      const double v = double(x[i]), wanted = v * 0.5 * std::erfc(-v / std::sqrt(2.0));
      EXPECT_NEAR(gelu[i], wanted, 1e-6 + 2e-7 * std::abs(v)) << v;
      EXPECT_NEAR(tanh[i], std::tanh(v), 1e-6) << v;
    }
  }
}

}  // namespace
}  // namespace retort::kernels
