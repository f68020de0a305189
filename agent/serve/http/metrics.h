#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace retort {

/// What /metrics tells, in Prometheus text form and base units. Thread: any.
class ServeMetrics {
 public:
  void count_request(int status);
  void count_tokens(std::uint64_t prompt, std::uint64_t generated);
  void observe_first_token(double seconds);
  void observe_token(double seconds);
  /// A batch of inputs that a classifier computed.
  void observe_classification(std::uint64_t inputs, double seconds);
  std::string text(std::size_t queue_depth, std::uint64_t resident_bytes) const;

 private:
  struct Histogram {
    static constexpr std::array<double, 12> kBounds{0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03,
                                                    0.1,    0.3,    1,     3,     10,   30};
    std::array<std::uint64_t, kBounds.size()> below{};
    std::uint64_t count = 0;
    double sum = 0;
    void observe(double value);
    void print(std::string& out, const std::string& name, const std::string& help) const;
  };
  mutable std::mutex mutex_;
  std::map<int, std::uint64_t> requests_;
  std::uint64_t prompt_tokens_ = 0, generated_tokens_ = 0, inputs_ = 0;
  Histogram first_token_, token_, classification_;
};

}  // namespace retort
