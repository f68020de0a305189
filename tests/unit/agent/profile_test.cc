#include "agent/profile/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/support.h"

namespace retort {
namespace {

using ::testing::ElementsAre;

constexpr const char* kX86 =
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.20GHz\n"
    "flags\t\t: fpu vme avx2 sse4_1 avx fma f16c hypervisor avx512_vnni\nbugs\t\t: spectre_v1\n\n"
    "processor\t: 1\nmodel name\t: another\nflags\t\t: amx_tile\n";
constexpr const char* kArm =
    "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 asimddp i8mm\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\n";

TEST(Profile, ReadsX86) {
  EXPECT_EQ(parse_cpu_model(kX86), "Intel(R) Xeon(R) CPU @ 2.20GHz");
  EXPECT_THAT(parse_isa_features(kX86), ElementsAre("avx", "avx2", "avx512_vnni", "f16c", "fma", "sse4_1"));
}

TEST(Profile, ReadsArm) {
  EXPECT_EQ(parse_cpu_model(kArm), "ARM implementer 0x41 part 0xd0b");
  EXPECT_EQ(parse_cpu_model(std::string(kArm) + "Model\t\t: Raspberry Pi 5\n"), "Raspberry Pi 5");
  EXPECT_THAT(parse_isa_features(kArm), ElementsAre("asimd", "asimddp", "i8mm"));
}

TEST(Profile, OddTextsAreHarmless) {
  EXPECT_EQ(parse_cpu_model(""), "");
  EXPECT_EQ(parse_cpu_model("model name"), "");
  EXPECT_EQ(parse_cpu_model("model name:"), "");
  EXPECT_THAT(parse_isa_features("flags:"), ElementsAre());
  EXPECT_EQ(parse_memory_total("MemTotal:       16314000 kB\nMemFree: 1 kB\n"), 16314000ull * 1024);
  EXPECT_EQ(parse_memory_total("MemFree: 1 kB\n"), 0u);
  EXPECT_EQ(parse_memory_total("MemTotal: 99999999999999999999 kB\n"), 0u);
  EXPECT_EQ(parse_nvidia_information("Model: \t\t NVIDIA T4\nIRQ: 1\n"), "nvidia: NVIDIA T4");
  EXPECT_EQ(parse_nvidia_information(""), "nvidia: unknown model");
}

TEST(Profile, MeasuresThisMachine) {
  ProfileOptions options;
  options.time_per_measure = std::chrono::milliseconds(5);
  options.labels = {{"site", "here"}};
  const DeviceProfile profile = measure_profile(options);
  EXPECT_GE(profile.cores, 1u);
  EXPECT_GT(profile.cpu_allowance, 0);
  EXPECT_LE(profile.cpu_allowance, profile.cores);
  EXPECT_GT(profile.memory_budget_bytes, 0u);
  EXPECT_LE(profile.memory_budget_bytes, profile.memory_bytes);
  EXPECT_GT(profile.memory_bandwidth_bytes_per_second, 1e8);
  EXPECT_GT(profile.matvec_f32_flops, 1e6);  // an emulator on a busy machine reaches it
  EXPECT_GT(profile.matvec_q8_0_ops, 1e6);
}

TEST(Profile, DeclaredBudgetsOnlyLower) {
  ProfileOptions options;
  options.time_per_measure = std::chrono::milliseconds(1);
  const DeviceProfile machine = measure_profile(options);
  options.budgets = {.memory_bytes = 96u << 20, .cpu_threads = 0.5, .disk_bytes = 1u << 20};
  const DeviceProfile small = measure_profile(options);
  EXPECT_EQ(small.memory_budget_bytes, 96u << 20);
  EXPECT_EQ(small.budget_source, "declared");
  EXPECT_EQ(small.cpu_allowance, 0.5);
  EXPECT_EQ(small.disk_free_bytes, 1u << 20);
  options.budgets = {.memory_bytes = UINT64_MAX, .cpu_threads = 1e9, .disk_bytes = UINT64_MAX};
  const DeviceProfile large = measure_profile(options);
  EXPECT_EQ(large.memory_budget_bytes, machine.memory_budget_bytes);
  EXPECT_EQ(large.cpu_allowance, machine.cpu_allowance);
  EXPECT_NE(large.budget_source, "declared");
}

TEST(Profile, JsonRoundTrip) {
  ProfileOptions options;
  options.time_per_measure = std::chrono::milliseconds(1);
  options.labels = {{"a", "b"}};
  options.version = "0.1";
  DeviceProfile profile = measure_profile(options);
  EXPECT_TRUE(profile.decode.empty());
  profile.decode = {{"Q8_0", 4, 256, 8, 2, 32, 768, 4096, 5, 1e-4}};
  const auto text = parse_json(json::serialize(profile_to_json(profile)), "profile");
  ASSERT_OK(text);
  const auto back = profile_from_json(*text, "profile");
  ASSERT_OK(back);
  EXPECT_EQ(*back, profile);
  EXPECT_FALSE(worth_telling(profile, *back));
  DeviceProfile other = profile;
  other.labels["a"] = "c";
  EXPECT_TRUE(worth_telling(profile, other));
  other = profile;
  other.matvec_f32_flops *= 1.1;
  EXPECT_FALSE(worth_telling(profile, other));
  other.matvec_f32_flops = profile.matvec_f32_flops * 2;
  EXPECT_TRUE(worth_telling(profile, other));
  other = profile;
  other.decode.clear();
  EXPECT_TRUE(worth_telling(other, profile));
  EXPECT_EQ(profile_from_json(json::object{{"hostname", 3}}, "p").error().code, ErrorCode::kInvalid);
}

TEST(Profile, AServeThatCannotBeAskedIsNoted) {
  ProfileOptions options;
  options.time_per_measure = std::chrono::milliseconds(1);
  for (const char* binary : {"/nonexistent/retort-serve", "/bin/false", "/bin/true"}) {
    options.serve_binary = binary;
    const DeviceProfile profile = measure_profile(options);
    EXPECT_TRUE(profile.decode.empty());
    ASSERT_FALSE(profile.notes.empty());
    EXPECT_NE(profile.notes.back().find("decode: "), std::string::npos) << profile.notes.back();
  }
}

}  // namespace
}  // namespace retort
