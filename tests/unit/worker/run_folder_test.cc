#include "coordinator/worker/run_folder.h"

#include "common/core/clock.h"
#include "tests/support/support.h"
#include "tests/unit/worker/small_network.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

class RunFolderTest : public ::testing::Test {
 protected:
  Network network(std::uint64_t seed) { return random_network(testing::small(ModelFamily::kLlama), seed); }
  /// As a worker that is started.
  RunFolder opened() {
    RunFolder out(folder_.path(), progress_);
    loaded_ = out.load({"recipe", "teacher", 1, 1});
    return out;
  }
  std::size_t weights() const {
    std::size_t count = 0;
    for (const auto& entry : fs::directory_iterator(folder_.path()))
      count += entry.path().extension() == ".safetensors" ? 1 : 0;
    return count;
  }
  static bool same(const Network& a, const Network& b) {
    for (const auto& [name, tensor] : a.weights)
      if (!tensor.equal(b.weight(name))) return false;
    return true;
  }

  testing::TemporaryFolder folder_;
  SystemClock clock_;
  Progress progress_{clock_, {}};
  Result<void> loaded_ = fail(ErrorCode::kInternal, "", "not loaded");
};

/// What a crash leaves are the state on disk and files that are newer than it: a run that goes on from it,
/// and whose next look turns out otherwise, must not take the newer weights for the best.
TEST_F(RunFolderTest, TheBestWeightsAreThoseOfTheStateOnDisk) {
  const Network first = network(1), second = network(2), third = network(3);
  {
    RunFolder run = opened();
    ASSERT_OK(loaded_);
    run.state.step = 20;
    ASSERT_OK(run.save_best(first, 2.5, 0));
    run.state.step = 25;
    ASSERT_OK(run.save(third, {}));
    for (run.state.step = 40; run.state.step <= 80; run.state.step += 20)
      ASSERT_OK(run.save_best(second, 2.4, 0));
    EXPECT_EQ(weights(), 3u) << "the checkpoint, its best and the best of now";
  }
  RunFolder again = opened();
  ASSERT_OK(loaded_);
  EXPECT_EQ(again.state.best_step, 20u);
  EXPECT_EQ(weights(), 2u);
  Network best = network(4);
  ASSERT_OK(again.restore_best(best));
  EXPECT_TRUE(same(best, first));
  again.state.step = 100;
  ASSERT_OK(again.save_best(second, 2.3, 0));
  ASSERT_OK(again.save(third, {}));
  EXPECT_EQ(weights(), 2u);
  ASSERT_OK(again.restore_best(best));
  EXPECT_TRUE(same(best, second));
  // Bytes that are not what was written.
  std::string bytes = *read_file(folder_.path() / again.state.best);
  bytes.back() ^= 1;
  ASSERT_OK(write_file_atomic(folder_.path() / again.state.best, bytes));
  EXPECT_EQ(again.restore_best(best).error().code, ErrorCode::kCorrupt);
  again.next_pass();
  ASSERT_OK(again.save(third, {}));
  EXPECT_EQ(weights(), 1u) << "a pass that is done has no best";
}

}  // namespace
}  // namespace retort
