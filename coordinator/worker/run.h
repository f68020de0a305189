#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "common/core/result.h"

namespace retort {

struct RunOptions {
  std::filesystem::path recipe, out, serve_binary;  ///< serve_binary empty: beside us, then on PATH
  int threads = 1;
  std::string device = "auto";  ///< where training runs: auto (a GPU where there is one), cpu, cuda
  std::optional<std::uint64_t> memory_limit;  ///< bytes; without one, the least of cgroup and free memory
  std::filesystem::path cache;                ///< of teachers' outputs; empty: none
  std::uint64_t cache_limit = 8ull << 30;     ///< bytes that all files in it may take
  bool dry_run = false, json = false;
};

/// Set by the signal handler: write a checkpoint at the next step and return kCancelled.
extern std::atomic<bool> run_interrupted;

/// Runs a recipe in DIR (or goes on where an earlier run stopped); a dry run only prints its plan. The
/// process's exit status: 130 after an interruption, that of the error, or 0.
int run_recipe(const RunOptions& options);

/// A full disk is no verdict on the recipe: there may be room again later, so it becomes kUnavailable and the
/// run, which leaves no result then, goes on from its last checkpoint.
Result<void> on_disk(Result<void> written);
/// Of a folder's safetensors: the file's own hash, or the hash of the shards' hashes.
Result<std::string> weights_sha256(const std::filesystem::path& folder);
/// Of what makes a folder's model what it is: its weights, by their weights_sha256, and its config.json.
Result<std::string> model_sha256(const std::filesystem::path& folder, const std::string& weights);
/// Checks a Hugging Face folder and prints what it is as JSON.
Result<void> inspect_model(const std::filesystem::path& folder);
/// Whether training on `name`, as in RunOptions, uses a GPU. kUnavailable: cuda is asked for, and LibTorch
/// has none or sees none.
Result<bool> trains_on_gpu(const std::string& name);
/// Measures a matrix product and says whether the BLAS is a fast one.
Result<void> check_blas(int threads);

}  // namespace retort
