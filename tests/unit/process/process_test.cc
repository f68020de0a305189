#include "common/process/process.h"

#include <signal.h>
#include <unistd.h>

#include "common/core/file.h"
#include "tests/support/support.h"

namespace retort {
namespace {

TEST(Process, ExitCodeOutputAndEnvironment) {
  testing::TemporaryFolder folder;
  ProcessSpec spec;
  spec.arguments = {"sh", "-c", "echo \"$RETORT_X\"; pwd; exit 7"};
  spec.environment["RETORT_X"] = "hello";
  spec.stdout_file = folder / "out";
  spec.folder = folder.path();
  const auto pid = start_process(spec);
  ASSERT_OK(pid);
  boost::asio::io_context reactor;
  int code = -2;
  ProcessWatch watch(reactor, *pid, [&](int c) { code = c; });
  reactor.run();
  EXPECT_EQ(code, 7);
  EXPECT_EQ(*read_file(folder / "out"), "hello\n" + folder.path().string() + "\n");
}

TEST(Process, MissingProgramIsNamed) {
  ProcessSpec spec;
  spec.arguments = {"/no/such/program"};
  const auto pid = start_process(spec);
  ASSERT_FALSE(pid);
  EXPECT_EQ(pid.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(pid.error().where, "/no/such/program");
}

TEST(Process, WatchSignalsAndIdentity) {
  ProcessSpec spec;
  spec.arguments = {"sleep", "600"};
  const auto pid = start_process(spec);
  ASSERT_OK(pid);
  const auto identity = identify_process(*pid);
  ASSERT_OK(identity);
  EXPECT_TRUE(is_running(*identity));
  EXPECT_FALSE(is_running({*pid, identity->start_ticks + 1}));
  EXPECT_GT(pss_bytes(*pid).value_or(0), 0u);
  boost::asio::io_context reactor;
  int code = -2;
  ProcessWatch watch(reactor, *pid, [&](int c) { code = c; });
  watch.signal(SIGKILL);
  reactor.run();
  EXPECT_EQ(code, 128 + SIGKILL);
  EXPECT_FALSE(is_running(*identity));
}

TEST(Process, AllowancesAreWithinTheMachine) {
  EXPECT_GT(cpu_allowance(), 0.0);
  EXPECT_LE(cpu_allowance(), static_cast<double>(::sysconf(_SC_NPROCESSORS_ONLN)));
  EXPECT_GT(memory_allowance_bytes(), 1u << 20);
}

}  // namespace
}  // namespace retort
