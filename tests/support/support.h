#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>

#include "common/core/clock.h"
#include "common/core/result.h"

namespace retort::testing {

/// A fresh folder that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// A clock that stands still until it is moved.
class ManualClock final : public Clock {
 public:
  std::chrono::system_clock::time_point now() const override { return wall_; }
  std::chrono::steady_clock::time_point steady_now() const override { return steady_; }
  void advance(std::chrono::milliseconds by) { wall_ += by, steady_ += by; }
  void set_wall(std::chrono::system_clock::time_point wall) { wall_ = wall; }

 private:
  std::chrono::system_clock::time_point wall_{std::chrono::seconds(1'800'000'000)};
  std::chrono::steady_clock::time_point steady_{std::chrono::seconds(1000)};
};

/// The folder of a shared teacher ("stories-260k") or data set, or an empty path where the shared assets are
/// absent.
std::filesystem::path asset(std::string_view below_assets);
/// Folder of the built binaries and of the source tree.
std::filesystem::path binary(std::string_view name);
std::filesystem::path source(std::string_view relative);

template <typename T>
::testing::AssertionResult succeeded(const Result<T>& result) {
  if (result) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << to_string(result.error().code) << ": " << result.error().describe();
}

}  // namespace retort::testing

#define EXPECT_OK(result) EXPECT_TRUE(::retort::testing::succeeded(result))
#define ASSERT_OK(result) ASSERT_TRUE(::retort::testing::succeeded(result))
/// Skips the test, and says so, where an asset is absent.
#define RETORT_NEED_ASSET(variable, name)                                \
  const std::filesystem::path variable = ::retort::testing::asset(name); \
  if (variable.empty()) GTEST_SKIP() << "shared asset " << (name) << " is not here"
