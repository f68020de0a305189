#include "common/blocks/k_quants.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/blocks/formats.h"
#include "common/blocks/scale_search.h"
#include "common/blocks/tensor_type.h"

namespace retort::blocks {
namespace {

struct Q3K {
  std::uint8_t high[32];    ///< bit j of byte i: the third bit of value 32 j + i (set: not 4 less)
  std::uint8_t low[64];     ///< two bits at a time: value 128 h + 32 s + i is bits 2 s of byte 32 h + i
  std::uint8_t scales[12];  ///< 16 of 6 bits, 32 more than they mean
  std::uint16_t d;
};
struct Q4K {
  std::uint16_t d, d_min;
  std::uint8_t scales[12];  ///< 8 scales and 8 mins of 6 bits
  std::uint8_t q[128];      ///< value 64 j + i below value 64 j + 32 + i in byte 32 j + i
};
struct Q5K {
  std::uint16_t d, d_min;
  std::uint8_t scales[12];
  std::uint8_t high[32];  ///< bit j of byte i: the fifth bit of value 32 j + i
  std::uint8_t q[128];
};
struct Q6K {
  std::uint8_t low[128];  ///< of each half of 128: value i below i + 64 in byte i, for i < 64
  std::uint8_t
      high[64];  ///< of each half: two bits of values i, i + 32, i + 64, i + 96 in byte i, for i < 32
  std::int8_t scales[16];
  std::uint16_t d;
};
static_assert(sizeof(Q3K) == kQ3KBytes && sizeof(Q4K) == kQ4KBytes && sizeof(Q5K) == kQ5KBytes &&
              sizeof(Q6K) == kQ6KBytes);

template <typename Block>
Block load(const std::byte* bytes) {
  Block block;
  std::memcpy(&block, bytes, sizeof block);
  return block;
}

/// The scale and min number `run` of Q4_K and Q5_K: the first four whole, the others in two pieces.
std::pair<int, int> scale_and_min(const std::uint8_t* s, std::size_t run) {
  if (run < 4) return {s[run] & 63, s[run + 4] & 63};
  return {(s[run + 4] & 15) | (s[run - 4] >> 6) << 4, s[run + 4] >> 4 | (s[run] >> 6) << 4};
}
void put_scale_and_min(std::uint8_t* s, std::size_t run, int scale, int min) {
  if (run < 4) {
    s[run] = static_cast<std::uint8_t>((s[run] & 0xc0) | scale);
    s[run + 4] = static_cast<std::uint8_t>((s[run + 4] & 0xc0) | min);
  } else {
    s[run + 4] = static_cast<std::uint8_t>((scale & 15) | (min & 15) << 4);
    s[run - 4] = static_cast<std::uint8_t>((s[run - 4] & 63) | (scale >> 4) << 6);
    s[run] = static_cast<std::uint8_t>((s[run] & 63) | (min >> 4) << 6);
  }
}

/// Scale number `run` of Q3_K: four low bits in the first eight bytes, two high ones in the last four.
int q3_scale(const std::uint8_t* s, std::size_t run) {
  const int low = run < 8 ? s[run] & 15 : s[run - 8] >> 4;
  return (low | (s[8 + run % 4] >> (2 * (run / 4)) & 3) << 4) - 32;
}
void put_q3_scale(std::uint8_t* s, std::size_t run, int scale) {
  const int value = scale + 32;
  s[run % 8] = static_cast<std::uint8_t>(s[run % 8] | (value & 15) << (run < 8 ? 0 : 4));
  s[8 + run % 4] = static_cast<std::uint8_t>(s[8 + run % 4] | (value >> 4) << (2 * (run / 4)));
}

// ---- finding scales ----

std::array<float, 256> finite(std::span<const float> values) {
  std::array<float, 256> out;
  std::transform(values.begin(), values.end(), out.begin(),
                 [](float x) { return std::isfinite(x) ? x : 0.0f; });
  return out;
}

struct Affine {
  float scale = 0, min = 0;  ///< value = scale q − min
};

/// Σ w (x − (s q − m))² for the nearest q in [low, high].
float squared_error(Run run, Affine a, float low, float high) {
  const float inverse = a.scale != 0 ? 1 / a.scale : 0;
  float error = 0;
  for (std::size_t i = 0; i < run.x.size(); ++i) {
    const float q = clamped_round((run.x[i] + a.min) * inverse, low, high);
    const float difference = run.x[i] - (a.scale * q - a.min);
    error += run.weight[i] * difference * difference;
  }
  return error;
}

/// The same for Σ w (x − (s q − m))² over q in [0, levels], m ≥ 0.
Affine affine_scale(Run run, int levels) {
  const auto n = static_cast<float>(levels);
  float low = 0, high = run.x[0];
  for (const float v : run.x) low = std::min(low, v), high = std::max(high, v);
  if (high <= low) return {0, -low};
  Affine best{(high - low) / n, -low};
  float best_error = std::numeric_limits<float>::infinity();
  for (int step = -1; step <= 20; ++step) {
    const float inverse =
        step < 0 ? n / (high - low) : (n - 1 + 0.1f * static_cast<float>(step)) / (high - low);
    // Least squares of x on (q, 1) for the q that this scale gives.
    float count = 0, q_sum = 0, q_square = 0, x_sum = 0, xq_sum = 0;
    for (std::size_t i = 0; i < run.x.size(); ++i) {
      const float q = clamped_round(inverse * (run.x[i] - low), 0, n), w = run.weight[i];
      count += w, q_sum += w * q, q_square += w * q * q, x_sum += w * run.x[i], xq_sum += w * run.x[i] * q;
    }
    const float determinant = count * q_square - q_sum * q_sum;
    if (determinant <= 0) continue;
    Affine now{(count * xq_sum - x_sum * q_sum) / determinant,
               (q_sum * xq_sum - q_square * x_sum) / determinant};
    if (now.min < 0) now = {q_square > 0 ? xq_sum / q_square : 0, 0};
    if (!(now.scale > 0)) continue;
    const float error = squared_error(run, now, 0, n);
    if (error < best_error) best_error = error, best = now;
  }
  return best;
}

/// A block's values with its error weights, one where none are given.
struct Values {
  std::array<float, 256> x, weight;
  Values(std::span<const float> values, std::span<const float> weights) : x(finite(values)) {
    if (weights.empty())
      weight.fill(1);
    else
      std::copy(weights.begin(), weights.end(), weight.begin());
  }
  Run run(std::size_t r, std::size_t length) const {
    return {std::span(x).subspan(r * length, length), std::span(weight).subspan(r * length, length)};
  }
};

/// Scales and mins of the eight runs of Q4_K and Q5_K, themselves in 6 bits, and the values that go with
/// them.
template <typename Block>
std::array<std::int8_t, 256> encode_affine(const Values& values, int levels, Block& block) {
  std::array<Affine, 8> runs;
  float top_scale = 0, top_min = 0;
  for (std::size_t r = 0; r < 8; ++r) {
    runs[r] = affine_scale(values.run(r, 32), levels);
    top_scale = std::max(top_scale, runs[r].scale);
    top_min = std::max(top_min, runs[r].min);
  }
  block.d = f32_to_f16(top_scale / 63);
  block.d_min = f32_to_f16(top_min / 63);
  const float d = f16_to_f32(block.d), d_min = f16_to_f32(block.d_min), n = static_cast<float>(levels);
  std::array<std::int8_t, 256> q{};
  for (std::size_t r = 0; r < 8; ++r) {
    const auto near = [](float wanted, float unit) {
      return unit > 0 ? static_cast<int>(clamped_round(wanted / unit, 0, 63)) : 0;
    };
    // The six-bit pair next to the wanted one whose error is least: what one loses the other can mend.
    const int at_scale = near(runs[r].scale, d), at_min = near(runs[r].min, d_min);
    int scale = at_scale, min = at_min;
    float least = std::numeric_limits<float>::infinity();
    for (int s = std::max(0, at_scale - 1); s <= std::min(63, at_scale + 1); ++s)
      for (int m = std::max(0, at_min - 1); m <= std::min(63, at_min + 1); ++m) {
        const float error = squared_error(values.run(r, 32),
                                          {d * static_cast<float>(s), d_min * static_cast<float>(m)}, 0, n);
        if (error < least) least = error, scale = s, min = m;
      }
    put_scale_and_min(block.scales, r, scale, min);
    const float s = d * static_cast<float>(scale), m = d_min * static_cast<float>(min);
    for (std::size_t i = 32 * r; i < 32 * r + 32 && s > 0; ++i)
      q[i] = static_cast<std::int8_t>(clamped_round((values.x[i] + m) / s, 0, n));
  }
  return q;
}

/// Scales of the sixteen runs of Q3_K and Q6_K, whole numbers in [−limit, limit − 1] times d.
struct Symmetric {
  std::uint16_t d = 0;
  std::array<int, 16> scale{};
  std::array<std::int8_t, 256> q{};
};
Symmetric encode_symmetric(const Values& values, int levels, int limit) {
  std::array<float, 16> scales;
  float extreme = 0;
  for (std::size_t r = 0; r < 16; ++r) {
    scales[r] = symmetric_scale(values.run(r, 16), levels);
    if (std::fabs(scales[r]) > std::fabs(extreme)) extreme = scales[r];
  }
  Symmetric out;
  out.d = f32_to_f16(extreme / static_cast<float>(-limit));
  const float d = f16_to_f32(out.d), low = static_cast<float>(-levels), high = static_cast<float>(levels - 1);
  for (std::size_t r = 0; r < 16 && d != 0; ++r) {
    const int at = static_cast<int>(
        clamped_round(scales[r] / d, static_cast<float>(-limit), static_cast<float>(limit - 1)));
    float least = std::numeric_limits<float>::infinity();
    for (int s = std::max(-limit, at - 1); s <= std::min(limit - 1, at + 1); ++s) {
      const float error = squared_error(values.run(r, 16), {d * static_cast<float>(s), 0}, low, high);
      if (error < least) least = error, out.scale[r] = s;
    }
    const float s = d * static_cast<float>(out.scale[r]);
    for (std::size_t i = 16 * r; i < 16 * r + 16 && s != 0; ++i)
      out.q[i] = static_cast<std::int8_t>(clamped_round(values.x[i] / s, low, high));
  }
  return out;
}

// ---- where the values stand ----

using Levels = std::span<const std::int8_t, 256>;

void put(Q3K& block, Levels q) {
  std::memset(block.high, 0, sizeof block.high);
  std::memset(block.low, 0, sizeof block.low);
  for (std::size_t j = 0; j < 256; ++j) {
    const int level = q[j] + 4;
    std::uint8_t& low = block.low[j / 128 * 32 + j % 32];
    low = static_cast<std::uint8_t>(low | (level & 3) << (2 * (j / 32 % 4)));
    block.high[j % 32] = static_cast<std::uint8_t>(block.high[j % 32] | (level >> 2) << (j / 32));
  }
}

template <typename Block>
void put_low_halves(Block& block, Levels q) {
  for (std::size_t j = 0; j < 128; ++j) {
    const std::size_t low = j / 32 * 64 + j % 32;
    block.q[j] = static_cast<std::uint8_t>((q[low] & 15) | (q[low + 32] & 15) << 4);
  }
}

void put(Q4K& block, Levels q) { put_low_halves(block, q); }

void put(Q5K& block, Levels q) {
  put_low_halves(block, q);
  std::memset(block.high, 0, sizeof block.high);
  for (std::size_t j = 0; j < 256; ++j)
    block.high[j % 32] = static_cast<std::uint8_t>(block.high[j % 32] | (q[j] >> 4) << (j / 32));
}

void put(Q6K& block, Levels q) {
  std::memset(block.low, 0, sizeof block.low);
  std::memset(block.high, 0, sizeof block.high);
  for (std::size_t j = 0; j < 256; ++j) {
    const std::size_t half = j / 128, k = j % 128;
    const int level = q[j] + 32;
    std::uint8_t &low = block.low[64 * half + k % 64], &high = block.high[32 * half + k % 32];
    low = static_cast<std::uint8_t>(low | (level & 15) << (4 * (k / 64)));
    high = static_cast<std::uint8_t>(high | (level >> 4) << (2 * (k / 32)));
  }
}

template <typename Block>
void replace(std::byte* bytes, Levels q) {
  Block block = load<Block>(bytes);
  put(block, q);
  std::memcpy(bytes, &block, sizeof block);
}

/// Every block of a row through `encode`, which fills one.
template <typename Block, typename Encode>
void encode_blocks(std::span<const float> values, std::span<const float> weights, std::byte* out,
                   Encode encode) {
  for (std::size_t i = 0; i < values.size(); i += 256, out += sizeof(Block)) {
    Block block{};
    const Values part(values.subspan(i, 256), weights.empty() ? weights : weights.subspan(i, 256));
    encode(part, block);
    std::memcpy(out, &block, sizeof block);
  }
}

template <typename Read>
void decode(const std::byte* bytes, std::size_t block_bytes, std::size_t run, std::span<float> out,
            Read read) {
  for (std::size_t i = 0; i < out.size(); i += 256, bytes += block_bytes) {
    const KBlock block = read(bytes);
    for (std::size_t j = 0; j < 256; ++j)
      out[i + j] = block.scale[j / run] * static_cast<float>(block.q[j]) - block.min[j / run];
  }
}

}  // namespace

KBlock read_q3_k(const std::byte* bytes) {
  const auto from = load<Q3K>(bytes);
  const float d = f16_to_f32(from.d);
  KBlock out{};
  for (std::size_t r = 0; r < 16; ++r) out.scale[r] = d * static_cast<float>(q3_scale(from.scales, r));
  for (std::size_t j = 0; j < 256; ++j) {
    const std::size_t i = j % 32;
    const int low = from.low[j / 128 * 32 + i] >> (2 * (j / 32 % 4)) & 3, high = from.high[i] >> (j / 32) & 1;
    out.q[j] = static_cast<std::int8_t>(low - (high != 0 ? 0 : 4));
  }
  return out;
}

KBlock read_q4_k(const std::byte* bytes) {
  const auto from = load<Q4K>(bytes);
  const float d = f16_to_f32(from.d), d_min = f16_to_f32(from.d_min);
  KBlock out{};
  for (std::size_t r = 0; r < 8; ++r) {
    const auto [scale, min] = scale_and_min(from.scales, r);
    out.scale[r] = d * static_cast<float>(scale), out.min[r] = d_min * static_cast<float>(min);
    for (std::size_t i = 0; i < 32; ++i)
      out.q[32 * r + i] = static_cast<std::int8_t>(from.q[r / 2 * 32 + i] >> (4 * (r % 2)) & 15);
  }
  return out;
}

KBlock read_q5_k(const std::byte* bytes) {
  const auto from = load<Q5K>(bytes);
  const float d = f16_to_f32(from.d), d_min = f16_to_f32(from.d_min);
  KBlock out{};
  for (std::size_t r = 0; r < 8; ++r) {
    const auto [scale, min] = scale_and_min(from.scales, r);
    out.scale[r] = d * static_cast<float>(scale), out.min[r] = d_min * static_cast<float>(min);
    for (std::size_t i = 0; i < 32; ++i)
      out.q[32 * r + i] = static_cast<std::int8_t>((from.q[r / 2 * 32 + i] >> (4 * (r % 2)) & 15) |
                                                   (from.high[i] >> r & 1) << 4);
  }
  return out;
}

KBlock read_q6_k(const std::byte* bytes) {
  const auto from = load<Q6K>(bytes);
  const float d = f16_to_f32(from.d);
  KBlock out{};
  for (std::size_t r = 0; r < 16; ++r) out.scale[r] = d * static_cast<float>(from.scales[r]);
  for (std::size_t j = 0; j < 256; ++j) {
    const std::size_t half = j / 128, i = j % 128;
    const int low = from.low[64 * half + i % 64] >> (4 * (i / 64)) & 15;
    const int high = from.high[32 * half + i % 32] >> (2 * (i / 32)) & 3;
    out.q[j] = static_cast<std::int8_t>((low | high << 4) - 32);
  }
  return out;
}

void decode_q3_k(const std::byte* bytes, std::span<float> out) {
  decode(bytes, kQ3KBytes, 16, out, read_q3_k);
}
void decode_q4_k(const std::byte* bytes, std::span<float> out) {
  decode(bytes, kQ4KBytes, 32, out, read_q4_k);
}
void decode_q5_k(const std::byte* bytes, std::span<float> out) {
  decode(bytes, kQ5KBytes, 32, out, read_q5_k);
}
void decode_q6_k(const std::byte* bytes, std::span<float> out) {
  decode(bytes, kQ6KBytes, 16, out, read_q6_k);
}

void encode_q3_k(std::span<const float> values, std::span<const float> weights, std::byte* out) {
  encode_blocks<Q3K>(values, weights, out, [](const Values& part, Q3K& block) {
    const Symmetric found = encode_symmetric(part, 4, 32);
    block.d = found.d;
    for (std::size_t r = 0; r < 16; ++r) put_q3_scale(block.scales, r, found.scale[r]);
    put(block, found.q);
  });
}

void encode_q4_k(std::span<const float> values, std::span<const float> weights, std::byte* out) {
  encode_blocks<Q4K>(values, weights, out,
                     [](const Values& part, Q4K& block) { put(block, encode_affine(part, 15, block)); });
}

void encode_q5_k(std::span<const float> values, std::span<const float> weights, std::byte* out) {
  encode_blocks<Q5K>(values, weights, out,
                     [](const Values& part, Q5K& block) { put(block, encode_affine(part, 31, block)); });
}

void encode_q6_k(std::span<const float> values, std::span<const float> weights, std::byte* out) {
  encode_blocks<Q6K>(values, weights, out, [](const Values& part, Q6K& block) {
    const Symmetric found = encode_symmetric(part, 32, 128);
    block.d = found.d;
    for (std::size_t r = 0; r < 16; ++r) block.scales[r] = static_cast<std::int8_t>(found.scale[r]);
    put(block, found.q);
  });
}

void put_levels_q3_k(std::byte* block, Levels q) { replace<Q3K>(block, q); }
void put_levels_q4_k(std::byte* block, Levels q) { replace<Q4K>(block, q); }
void put_levels_q5_k(std::byte* block, Levels q) { replace<Q5K>(block, q); }
void put_levels_q6_k(std::byte* block, Levels q) { replace<Q6K>(block, q); }

}  // namespace retort::blocks
