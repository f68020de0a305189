#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "common/core/json.h"
#include "common/gguf/gguf.h"
#include "common/gguf/safetensors.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

Result<void> fill_with(std::span<std::byte> out, float first) {
  for (std::size_t i = 0; i + 4 <= out.size(); i += 4) {
    const float value = first + static_cast<float>(i / 4);
    std::memcpy(out.data() + i, &value, 4);
  }
  return {};
}

std::string sample_gguf(const TemporaryFolder& folder) {
  GgufWriter writer;
  writer.set("general.architecture", std::string("llama"));
  writer.set("a.number", std::uint64_t{7});
  writer.set("a.real", 0.5);
  writer.set("a.flag", true);
  writer.set("a.list", std::vector<std::int64_t>{1, -2, 3});
  writer.set("a.reals", std::vector<double>{0.25, -1e3});
  writer.set("a.texts", std::vector<std::string>{"x", "", "yz"});
  writer.add_tensor("t1", {5, 3}, TensorType::kF32, [](auto out) { return fill_with(out, 1); });
  writer.add_tensor("t2", {8}, TensorType::kF32, [](auto out) { return fill_with(out, 100); });
  EXPECT_OK(writer.write(folder / "m.gguf"));
  return *read_file(folder / "m.gguf");
}

Result<GgufFile> parse(const std::string& bytes) {
  return GgufFile::parse(std::as_bytes(std::span(bytes)), "test");
}

TEST(Gguf, RoundTrip) {
  TemporaryFolder folder;
  sample_gguf(folder);
  const auto file = GgufFile::open(folder / "m.gguf");
  ASSERT_OK(file);
  EXPECT_EQ(*file->text("general.architecture"), "llama");
  EXPECT_EQ(*file->uint("a.number"), 7u);
  EXPECT_EQ(*file->number("a.real"), 0.5);
  EXPECT_EQ(*file->texts("a.texts"), (std::vector<std::string>{"x", "", "yz"}));
  EXPECT_EQ(*file->integers("a.list"), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_EQ(*file->numbers("a.reals"), (std::vector<double>{0.25, -1e3}));
  EXPECT_EQ(file->numbers("a.list").error().message, "metadata 'a.list' is of another type");
  EXPECT_EQ(file->texts("none").error().message, "metadata 'none' is missing");
  const GgufTensor* t1 = file->tensor("t1");
  ASSERT_NE(t1, nullptr);
  EXPECT_EQ(t1->rows(), 3u);
  float last = 0;
  std::memcpy(&last, t1->data.data() + 14 * 4, 4);
  EXPECT_EQ(last, 15.0f);
  EXPECT_EQ(file->tensor("t2")->offset % 32, 0u);
  EXPECT_FALSE(file->uint("a.flag"));
  EXPECT_EQ(file->uint("none").error().message, "metadata 'none' is missing");
}

TEST(Gguf, EveryTruncationIsRefusedWithoutAFault) {
  TemporaryFolder folder;
  const std::string whole = sample_gguf(folder);
  for (std::size_t length = 0; length < whole.size() - 31; ++length)
    ASSERT_FALSE(parse(whole.substr(0, length))) << length;
  EXPECT_OK(parse(whole));
}

TEST(Gguf, LyingHeaders) {
  TemporaryFolder folder;
  const std::string whole = sample_gguf(folder);
  const auto with = [&](std::size_t at, std::uint64_t value, std::size_t size) {
    std::string bytes = whole;
    std::memcpy(bytes.data() + at, &value, size);
    return parse(bytes);
  };
  EXPECT_EQ(with(4, 9, 4).error().code, ErrorCode::kUnsupported);            // version
  EXPECT_EQ(with(8, UINT64_MAX, 8).error().code, ErrorCode::kCorrupt);       // tensor count
  EXPECT_EQ(with(16, 1ull << 40, 8).error().code, ErrorCode::kCorrupt);      // metadata count
  EXPECT_EQ(with(24, UINT64_MAX - 3, 8).error().code, ErrorCode::kCorrupt);  // a key's length
  const std::size_t t1 = whole.find("t1");
  EXPECT_EQ(with(t1 + 2, 77, 4).error().code, ErrorCode::kCorrupt);                // dimensions
  EXPECT_EQ(with(t1 + 6, 0, 8).error().code, ErrorCode::kCorrupt);                 // a zero dimension
  EXPECT_EQ(with(t1 + 6, UINT64_MAX / 2, 8).error().code, ErrorCode::kCorrupt);    // their product overflows
  EXPECT_EQ(with(t1 + 6, (1ull << 62) + 5, 8).error().code, ErrorCode::kCorrupt);  // a row's bytes overflow
  EXPECT_EQ(with(t1 + 22, 4242, 4).error().code, ErrorCode::kUnsupported);         // type
  EXPECT_EQ(with(t1 + 26, 31, 8).error().code, ErrorCode::kCorrupt);               // not aligned
  EXPECT_EQ(with(t1 + 26, UINT64_MAX - 31, 8).error().code, ErrorCode::kCorrupt);  // beyond the file
  EXPECT_EQ(with(t1 + 26, 32, 8).error().message, "two tensors overlap");
  std::string twice = whole;
  twice.replace(whole.find("t2"), 2, "t1");
  EXPECT_NE(parse(twice).error().message.find("there twice"), std::string::npos);
}

TEST(Gguf, AFailingSourceLeavesNothingBehind) {
  TemporaryFolder folder;
  GgufWriter writer;
  writer.add_tensor("t", {8}, TensorType::kF32,
                    [](auto) -> Result<void> { return fail(ErrorCode::kOutOfBudget, "t", "no space"); });
  const auto done = writer.write(folder / "m.gguf");
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kOutOfBudget);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

std::string safetensors_bytes(const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data, '\1');
}
Result<Safetensors> parse_safe(const std::string& bytes) {
  return Safetensors::parse(std::as_bytes(std::span(bytes)), "test");
}

TEST(Safetensors, RoundTripInAllTypes) {
  TemporaryFolder folder;
  const std::vector<TensorSource> sources{{"w", {2, 3}, [](std::span<float> out) -> Result<void> {
                                             for (std::size_t i = 0; i < out.size(); ++i)
                                               out[i] = static_cast<float>(i) - 2.5f;
                                             return {};
                                           }}};
  for (const auto dtype : {SafeTensor::DType::kF32, SafeTensor::DType::kF16, SafeTensor::DType::kBF16}) {
    ASSERT_OK(write_safetensors(folder / "model.safetensors", sources, dtype));
    const auto file = Safetensors::open_folder(folder.path());
    ASSERT_OK(file);
    const SafeTensor* w = file->find("w");
    ASSERT_NE(w, nullptr);
    EXPECT_EQ(w->shape, (std::vector<std::uint64_t>{2, 3}));
    float values[2];
    w->read_f32(4, values);
    EXPECT_EQ(values[0], 1.5f);
    EXPECT_EQ(values[1], 2.5f);
  }
}

TEST(Safetensors, LyingHeaders) {
  const auto message = [](const std::string& header, std::size_t data) {
    return parse_safe(safetensors_bytes(header, data)).error().message;
  };
  EXPECT_OK(parse_safe(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8)));
  EXPECT_NE(message(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7).find("do not lie inside"),
            std::string::npos);
  EXPECT_NE(message(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8).find("needs 12 bytes"),
            std::string::npos);
  EXPECT_NE(message(R"({"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}})", 8)
                .find("overflows"),
            std::string::npos);
  EXPECT_NE(message(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}})", 8).find("non-negative"),
            std::string::npos);
  EXPECT_NE(message(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8).find("do not lie inside"),
            std::string::npos);
  EXPECT_EQ(
      message(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          8),
      "two tensors overlap");
  EXPECT_NE(message(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8).find("I64"),
            std::string::npos);
  EXPECT_EQ(parse_safe(std::string("\x80\x04") + std::string(60, 'x')).error().code, ErrorCode::kInvalid);
  EXPECT_NE(parse_safe(std::string("PK\x03\x04") + std::string(60, 'x')).error().message.find("pickle"),
            std::string::npos);
  const std::string good = safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (std::size_t length = 0; length < good.size(); ++length)
    ASSERT_FALSE(parse_safe(good.substr(0, length))) << length;
}

TEST(Safetensors, ShardsStayInTheirFolderAndPicklesAreRefused) {
  TemporaryFolder folder;
  ASSERT_OK(write_file_atomic(folder / "model.safetensors.index.json",
                              R"({"weight_map":{"a":"../x.safetensors"}})"));
  EXPECT_NE(Safetensors::open_folder(folder.path()).error().message.find("plain file name"),
            std::string::npos);
  ASSERT_OK(
      write_file_atomic(folder / "s1.safetensors",
                        safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8)));
  ASSERT_OK(
      write_file_atomic(folder / "model.safetensors.index.json", R"({"weight_map":{"a":"s1.safetensors"}})"));
  EXPECT_OK(Safetensors::open_folder(folder.path()));
  ASSERT_OK(
      write_file_atomic(folder / "model.safetensors.index.json", R"({"weight_map":{"b":"s1.safetensors"}})"));
  EXPECT_NE(Safetensors::open_folder(folder.path()).error().message.find("'b' is not in"), std::string::npos);
  TemporaryFolder pickle;
  ASSERT_OK(write_file_atomic(pickle / "pytorch_model.bin", "PK"));
  EXPECT_EQ(Safetensors::open_folder(pickle.path()).error().code, ErrorCode::kUnsupported);
}

TEST(Safetensors, HolesAndNamesThereTwiceAreRefused) {
  const auto message = [](const std::string& header, std::size_t data) {
    return parse_safe(safetensors_bytes(header, data)).error().message;
  };
  EXPECT_NE(message(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 12).find("8 of 12"),
            std::string::npos);
  EXPECT_NE(message(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                    R"("a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                    12)
                .find("names a tensor twice"),
            std::string::npos);
}

/// A header of one metadata entry "k" of the given type and bytes.
std::string one_entry(std::uint32_t type, std::string_view value) {
  std::string bytes = "GGUF";
  const auto put = [&](auto number) { bytes.append(reinterpret_cast<const char*>(&number), sizeof number); };
  put(std::uint32_t{3}), put(std::uint64_t{0}), put(std::uint64_t{1}), put(std::uint64_t{1});
  bytes += "k";
  put(type);
  bytes += value;
  return bytes;
}

TEST(Gguf, ArraysThatLieOrNest) {
  const auto array = [](std::uint32_t element, std::uint64_t count, std::size_t bytes) {
    std::string value(reinterpret_cast<const char*>(&element), 4);
    value.append(reinterpret_cast<const char*>(&count), 8);
    return parse(one_entry(9, value + std::string(bytes, '\0')));
  };
  EXPECT_OK(array(4, 3, 12));
  EXPECT_NE(array(9, 1, 64).error().message.find("arrays of arrays"), std::string::npos);
  EXPECT_NE(array(4, 4, 12).error().message.find("more than the file holds"), std::string::npos);
  EXPECT_NE(array(8, UINT64_MAX / 8, 64).error().message.find("more than the file holds"), std::string::npos);
  EXPECT_NE(array(99, 1, 64).error().message.find("element type 99"), std::string::npos);
  EXPECT_NE(array(0, (1 << 23) + 1, (1 << 23) + 1).error().message.find("limit"), std::string::npos);
  EXPECT_NE(parse(one_entry(13, "")).error().message.find("value type 13"), std::string::npos);
  EXPECT_NE(parse(one_entry(8, std::string(8, '\x7f'))).error().message.find("past the end"),
            std::string::npos);
}

TEST(Gguf, AlignmentIsHonouredAndChecked) {
  TemporaryFolder folder;
  GgufWriter writer;
  writer.set("general.alignment", std::uint64_t{32});
  writer.add_tensor("t", {8}, TensorType::kF32, [](auto out) { return fill_with(out, 1); });
  ASSERT_OK(writer.write(folder / "m.gguf"));
  std::string bytes = *read_file(folder / "m.gguf");
  ASSERT_OK(parse(bytes));
  const std::size_t at = bytes.find("general.alignment") + 17 + 4;
  for (const std::uint32_t wrong : {0u, 48u, 1u << 30}) {
    std::memcpy(&bytes[at], &wrong, 4);
    EXPECT_NE(parse(bytes).error().message.find("general.alignment"), std::string::npos) << wrong;
  }
}

TEST(Gguf, AFullDiskIsOutOfBudgetAndLeavesNothing) {
  TemporaryFolder folder;
  GgufWriter writer;
  writer.add_tensor("t", {1 << 20}, TensorType::kF32, [](auto out) { return fill_with(out, 1); });
  rlimit old{};
  ::getrlimit(RLIMIT_FSIZE, &old);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1 << 16, old.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const auto done = writer.write(folder / "m.gguf");
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kOutOfBudget);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace retort
