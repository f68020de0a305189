#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace retort {

/// Chance as a parameter. Thread: any, unless an implementation says otherwise.
class RandomSource {
 public:
  virtual ~RandomSource() = default;
  virtual void fill(std::span<std::byte> out) = 0;

  std::uint64_t next_u64();
  /// Uniform in [0, 1).
  double next_unit();
  /// `bytes` random bytes as lower-case hexadecimal.
  std::string hex(std::size_t bytes);
};

/// The kernel's generator (getrandom); for ids, keys and tokens.
class SystemRandom final : public RandomSource {
 public:
  void fill(std::span<std::byte> out) override;
};

/// SplitMix64 from a seed: repeatable, not secret. Thread: one.
class SeededRandom final : public RandomSource {
 public:
  explicit SeededRandom(std::uint64_t seed) : state_(seed) {}
  void fill(std::span<std::byte> out) override;

 private:
  std::uint64_t state_;
};

}  // namespace retort
