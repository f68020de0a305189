#include "coordinator/catalog/catalog.h"

#include <gmock/gmock.h>

#include <fstream>

#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/hf/hf_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using ::testing::HasSubstr;
using testing::ManualClock;
using testing::TemporaryFolder;

struct CatalogTest : ::testing::Test {
  std::filesystem::path file(std::string_view name, std::string_view bytes) {
    const std::filesystem::path path = folder / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  bool holds_nothing(const std::filesystem::path& path) {
    return !std::filesystem::exists(path) || std::filesystem::is_empty(path);
  }
  TemporaryFolder folder;
  ManualClock clock;
};

TEST_F(CatalogTest, DatasetIsStoredUnderItsHash) {
  const std::string text = "{\"text\":\"one\"}\n\n{\"text\":\"zw\u00f6lf\",\"label\":\"x\"}";
  const auto record = import_dataset(file("a.jsonl", text), folder / "sets", "mine", clock);
  ASSERT_OK(record);
  EXPECT_EQ(record->name, "mine");
  EXPECT_EQ(record->documents, 2u);
  const auto stored = read_file(folder / "sets" / (record->id + ".jsonl"));
  ASSERT_OK(stored);
  EXPECT_EQ(*stored, "{\"text\":\"one\"}\n{\"text\":\"zw\u00f6lf\"}\n");
  EXPECT_EQ(sha256_hex(*stored), record->id);
  EXPECT_EQ(stored->size(), record->bytes);
  const auto again = import_dataset(folder / "a.jsonl", folder / "sets", "", clock);
  ASSERT_OK(again);
  EXPECT_EQ(again->id, record->id);
}

TEST_F(CatalogTest, TextIsSplitAtBlankLines) {
  const auto record = import_dataset(file("a.txt", "a\nb\n\n \nc"), folder / "sets", "", clock);
  ASSERT_OK(record);
  EXPECT_EQ(record->documents, 2u);
  EXPECT_EQ(*read_file(folder / "sets" / (record->id + ".jsonl")),
            "{\"text\":\"a\\nb\\n\"}\n{\"text\":\"c\\n\"}\n");
}

TEST_F(CatalogTest, BadDatasetsAreRefusedAndLeaveNothing) {
  const struct {
    const char *name, *bytes, *message;
  } cases[] = {{"a.jsonl", "{\"text\":\"x\"}\n{\"text\":", "a.jsonl:2"},
               {"b.jsonl", "{\"txt\":\"x\"}\n", "text"},
               {"c.jsonl", "{\"text\":7}\n", "c.jsonl:1"},
               {"d.jsonl", "[1]\n", "d.jsonl:1"},
               {"e.jsonl", "", "no documents"},
               {"f.jsonl", "{\"text\":\"\"}\n", "no documents"},
               {"g.txt", "\n \n", "no documents"},
               {"h.txt", "\xff\xfe\n", "h.txt"},
               {"i.csv", "x", ".jsonl or a .txt"}};
  for (const auto& bad : cases) {
    const auto record = import_dataset(file(bad.name, bad.bytes), folder / "sets", "", clock);
    ASSERT_FALSE(record) << bad.name;
    EXPECT_THAT(record.error().describe(), HasSubstr(bad.message));
    EXPECT_TRUE(holds_nothing(folder / "sets")) << bad.name;
  }
  EXPECT_FALSE(import_dataset(folder / "absent.jsonl", folder / "sets", "", clock));
}

TEST_F(CatalogTest, TeacherGetsItsGgufAndTheSameIdAgain) {
  ASSERT_OK(testing::write_tiny_model(folder / "hf", ModelFamily::kLlama, 3));
  file("hf/README.md", "not copied");
  const auto record = import_teacher(folder / "hf", folder / "teachers", "tiny", clock);
  ASSERT_OK(record);
  EXPECT_EQ(record->family, "llama");
  EXPECT_EQ(record->vocabulary, 300u);
  EXPECT_EQ(record->context, 128u);
  const std::filesystem::path home = folder / "teachers" / record->id;
  EXPECT_OK(open_hf_model(home));
  EXPECT_FALSE(std::filesystem::exists(home / "README.md"));
  const auto gguf = GgufFile::open(home / "model-f16.gguf");
  ASSERT_OK(gguf);
  EXPECT_OK(read_gguf_config(*gguf));
  const auto again = import_teacher(folder / "hf", folder / "teachers", "other", clock);
  ASSERT_OK(again);
  EXPECT_EQ(again->id, record->id);
  EXPECT_FALSE(std::filesystem::exists(folder / "teachers" / "incoming"));
  ASSERT_OK(testing::write_tiny_model(folder / "hf2", ModelFamily::kLlama, 4));
  const auto other = import_teacher(folder / "hf2", folder / "teachers", "", clock);
  ASSERT_OK(other);
  EXPECT_NE(other->id, record->id);
}

TEST_F(CatalogTest, BrokenTeacherLeavesNothing) {
  ASSERT_OK(testing::write_tiny_model(folder / "hf", ModelFamily::kGpt2, 3));
  std::filesystem::resize_file(folder / "hf" / "model.safetensors", 1000);
  EXPECT_FALSE(import_teacher(folder / "hf", folder / "teachers", "", clock));
  EXPECT_TRUE(holds_nothing(folder / "teachers"));
  EXPECT_FALSE(import_teacher(folder / "absent", folder / "teachers", "", clock));
}

}  // namespace
}  // namespace retort
