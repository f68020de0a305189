#pragma once

#include <chrono>
#include <filesystem>
#include <string>

#include "common/core/json.h"
#include "coordinator/worker/optimise.h"
#include "coordinator/worker/progress.h"
#include "coordinator/worker/runaway_loss.h"

namespace retort {

/// Where a run stands: what state.json holds.
struct RunState {
  std::size_t pass = 0;
  std::uint64_t step = 0;
  std::uint64_t steps = 0;  ///< of the pass in hand, when DIR/finish made it shorter; 0: as planned
  std::string checkpoint;   ///< file name; empty: the starting weights
  std::string checkpoint_sha256;
  std::string data_sha256, held_out_sha256;
  json::array artifacts;
  std::string best;  ///< file name of the weights with the least loss on held-out data; empty: none yet
  std::string best_sha256;
  double best_loss = 0;         ///< of them
  double best_risen = 0;        ///< RunawayLoss::risen of them
  std::uint64_t best_step = 0;  ///< the step they are of
  std::uint64_t looked = 0;     ///< 1 more than the steps done at the last look at the held-out data; 0: none
  std::uint64_t waited = 0;     ///< looks since the best
  RunawayLoss loss;             ///< of the pass in hand
  double seconds = 0;           ///< that the run took before it was last started
};

/// What a run is of; a folder of another one is refused.
struct RunIdentity {
  std::string recipe_sha256, teacher_sha256;
  std::size_t passes = 0;
  int threads = 1;
};

/// A run's output folder: its state and one checkpoint (docs/recipes.md, "The output folder"). A crash at any
/// moment leaves a whole pair of the two. Thread: one.
class RunFolder {
 public:
  RunFolder(std::filesystem::path folder, Progress& progress)
      : folder_(std::move(folder)), progress_(progress) {}

  RunState state;
  const std::filesystem::path& path() const { return folder_; }
  std::filesystem::path operator/(const std::string& name) const { return folder_ / name; }

  /// kCancelled when the user asked for it, or run_interrupted says so.
  Result<void> check_stop() const;
  /// Reads the state that is there, if any, and removes what a crash left behind. kConflict: another run's;
  /// kCorrupt: not what was written.
  Result<void> load(const RunIdentity& identity);
  /// Notes what the run learns from and is judged by. kConflict: it began with something else.
  Result<void> learn_from(const std::string& data_sha256, const std::string& held_out_sha256);
  Result<void> save_state();
  /// All passes are done: no checkpoint is wanted any more.
  Result<void> finish();
  /// That the run has taken, as far as its states on disk know of what was before.
  double seconds() const;
  /// Weights and moments, then the state that names them, then the old file goes.
  Result<void> save(const Network& network, const Moments& moments);
  /// The checkpoint's weights, moments and encoded matrices into a network of the shape that is in it.
  Result<void> restore(Network& network, Moments& moments) const;
  /// The state moves to the next pass.
  void next_pass();

  /// The weights of now are the best, at `loss`. Until the state is saved the file of the last saved one's
  /// stays as well.
  Result<void> save_best(const Network& network, double loss, double risen);
  Result<void> restore_best(Network& network) const;

 private:
  Result<void> read_state(const json::object& object, const std::string& where);
  std::filesystem::path encoded_file(const std::string& checkpoint) const;
  Result<std::string> checksum(const std::string& checkpoint) const;  ///< of it and its encoded_file
  Result<Safetensors> open_whole(const std::string& name, const std::string& sha256) const;
  /// Removes all weights but those that the state names, in memory or on disk.
  void sweep() const;

  std::filesystem::path folder_;
  Progress& progress_;
  RunIdentity identity_;
  std::string saved_best_;  ///< what the state on disk names
  std::chrono::steady_clock::time_point opened_ = std::chrono::steady_clock::now();
};

}  // namespace retort
