#include "tests/support/support.h"

#include <cstdlib>

namespace retort::testing {

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "retort-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) std::abort();
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path source(std::string_view relative) {
  const char* root = std::getenv("RETORT_SOURCE_DIR");
  return std::filesystem::path(root == nullptr ? "." : root) / relative;
}

std::filesystem::path asset(std::string_view below_assets) {
  const char* root = std::getenv("RETORT_ASSETS_DIR");
  const std::filesystem::path folder =
      root != nullptr ? std::filesystem::path(root) : source("../shared/assets");
  const std::filesystem::path path = folder / below_assets;
  return std::filesystem::exists(path) ? path : std::filesystem::path();
}

std::filesystem::path binary(std::string_view name) {
  const char* root = std::getenv("RETORT_BIN_DIR");
  return std::filesystem::path(root == nullptr ? "." : root) / name;
}

}  // namespace retort::testing
