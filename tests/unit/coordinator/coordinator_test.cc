#include "common/core/file.h"
#include "common/hf/classifier_model.h"
#include "coordinator/api/tokens.h"
#include "coordinator/catalog/catalog.h"
#include "coordinator/telemetry/telemetry_store.h"
#include "tests/support/support.h"
#include "tests/support/tiny_classifier.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::ManualClock;
using testing::TemporaryFolder;

TEST(Tokens, KindUsesExpiryAndRevocation) {
  const auto store = make_memory_store();
  ManualClock clock;
  SeededRandom random(1);
  Tokens tokens(*store, clock, random);
  const auto op = tokens.create("operator", "a", -1, 0);
  const auto twice = tokens.create("enrolment", "b", 2, 0);
  const auto brief = tokens.create("enrolment", "c", -1, clock.unix_millis() + 1000);
  ASSERT_OK(op);
  EXPECT_OK(tokens.check(op->secret, "operator"));
  EXPECT_EQ(tokens.check(op->secret, "enrolment").error().code, ErrorCode::kDenied);
  EXPECT_EQ(tokens.check(op->secret + "0", "operator").error().code, ErrorCode::kDenied);
  for (const char* bad : {"", ".", "x.y", "nodot"})
    EXPECT_EQ(tokens.check(bad, "operator").error().code, ErrorCode::kDenied) << bad;
  EXPECT_OK(tokens.enrol(twice->secret, "key", ""));
  EXPECT_OK(tokens.enrol(twice->secret, "key", ""));
  EXPECT_EQ(tokens.enrol(twice->secret, "key", "").error().code, ErrorCode::kDenied);
  EXPECT_OK(tokens.enrol(brief->secret, "key", ""));
  clock.advance(std::chrono::seconds(2));
  EXPECT_EQ(tokens.enrol(brief->secret, "key", "").error().code, ErrorCode::kDenied);
  EXPECT_OK(tokens.revoke(op->record.id));
  EXPECT_EQ(tokens.check(op->secret, "operator").error().code, ErrorCode::kDenied);
  EXPECT_EQ(tokens.revoke("none").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(tokens.create("king", "", -1, 0).error().code, ErrorCode::kInvalid);
  bool secret_stored = false;
  ASSERT_OK(store->scan("tokens", "", "", [&](std::string_view, std::string_view value) {
    secret_stored |= value.find(twice->secret.substr(13)) != std::string_view::npos;
    return true;
  }));
  EXPECT_FALSE(secret_stored);
}

TEST(Tokens, PreAuthorisedForDevicesThatAreNamed) {
  const auto store = make_memory_store();
  ManualClock clock;
  SeededRandom random(1);
  Tokens tokens(*store, clock, random);
  const auto named = tokens.create("enrolment", "a", 2, 0, {{"key-1", "serial 2"}, true});
  ASSERT_OK(named);
  EXPECT_EQ(tokens.enrol(named->secret, "key-3", "serial 4").error().code, ErrorCode::kDenied);
  EXPECT_EQ(tokens.enrol(named->secret, "key-3", "").error().code, ErrorCode::kDenied);
  EXPECT_EQ(tokens.enrol("wrong", "key-1", "").error().code, ErrorCode::kDenied);
  const auto by_key = tokens.enrol(named->secret, "key-1", "");
  ASSERT_OK(by_key);
  EXPECT_TRUE(by_key->manual);
  EXPECT_OK(tokens.enrol(named->secret, "key-9", "serial 2"));
  EXPECT_EQ(tokens.enrol(named->secret, "key-1", "").error().code, ErrorCode::kDenied) << "used up";
  EXPECT_EQ(tokens.create("operator", "a", -1, 0, {{"key-1"}, false}).error().code, ErrorCode::kInvalid);
  const auto any = tokens.create("enrolment", "b", 1, 0);
  EXPECT_FALSE(tokens.enrol(any->secret, "key-7", "")->manual);
}

TEST(Telemetry, Query) {
  const auto store = make_memory_store();
  TelemetryStore telemetry(*store);
  StoreBatch batch;
  TelemetryStore::put(batch, "dev-1", {{1000, "a", 1.5}, {2000, "a", 2.5}, {1000, "b", -1}});
  TelemetryStore::put(batch, "dev-2", {{3000, "a", 7}});
  ASSERT_OK(store->write(batch));
  EXPECT_EQ(telemetry.query("", "", 0, 100)->size(), 4u);
  EXPECT_EQ(telemetry.query("dev-1", "", 0, 100)->size(), 3u);
  const auto rows = telemetry.query("dev-1", "a", 1500, 100);
  ASSERT_EQ(rows->size(), 1u);
  EXPECT_EQ((*rows)[0].point, (TelemetryPoint{2000, "a", 2.5}));
  EXPECT_EQ(telemetry.query("", "", 0, 2)->size(), 2u);
}

TEST(Telemetry, OldPointsBecomeMinutesAndHours) {
  constexpr UnixMillis kMinute = TelemetryStore::kMinute, kHour = TelemetryStore::kHour;
  const TelemetryStore::Keep keep{10 * kMinute, 3 * kHour, 48 * kHour};
  const auto store = make_memory_store();
  TelemetryStore telemetry(*store);
  StoreBatch batch;
  std::vector<TelemetryPoint> points;
  for (UnixMillis time = 0; time < 6 * kHour; time += 20'000)
    points.push_back({time, "load", static_cast<double>(time / 20'000 % 3)});  // 0, 1, 2 of each minute
  TelemetryStore::put(batch, "a", points);
  TelemetryStore::put(batch, "b", {{5 * kHour, "load", 7}, {5 * kHour, "heat", -1}});
  ASSERT_OK(store->write(batch));
  const auto all = [&](UnixMillis width) {  // in pages of 7
    std::vector<TelemetryStore::Bucket> out;
    for (std::string after;;) {
      const auto page = telemetry.buckets(width, "", "", 0, 7, after);
      EXPECT_OK(page);
      out.insert(out.end(), page->begin(), page->end());
      if (page->size() < 7) return out;
      after = page->back().key;
    }
  };
  const auto wanted_hours = all(kHour), wanted_minutes = all(kMinute);
  ASSERT_EQ(wanted_hours.size(), 8u);
  ASSERT_EQ(wanted_minutes.size(), 362u);
  EXPECT_EQ(wanted_minutes[0].sum.count, 3u);
  EXPECT_EQ(wanted_minutes[0].sum.mean(), 1);
  EXPECT_EQ(wanted_minutes[0].sum.most, 2);
  EXPECT_EQ(wanted_minutes[361].sum.total, 7);
  const auto tidied = [&](UnixMillis now) {
    int calls = 1;
    while (!*telemetry.tidy(now, keep, 50)) ++calls;
    return calls;
  };
  const auto same_hours = [&] {
    const auto now = all(kHour);
    if (now.size() != wanted_hours.size()) return false;
    for (std::size_t i = 0; i < now.size(); ++i)
      if (now[i].key != wanted_hours[i].key || now[i].sum.count != wanted_hours[i].sum.count ||
          now[i].sum.total != wanted_hours[i].sum.total || now[i].sum.least != wanted_hours[i].sum.least ||
          now[i].sum.most != wanted_hours[i].sum.most)
        return false;
    return true;
  };
  EXPECT_GT(tidied(6 * kHour), 20);  // in small steps
  EXPECT_EQ(telemetry.query("", "", 0, 10000)->size(), 30u) << "the last ten minutes'";
  EXPECT_EQ(all(kMinute).size(), 182u) << "three hours'";
  EXPECT_TRUE(same_hours());
  // What comes late is added to what is there, in a minute that is kept and in one that is an hour's by now.
  StoreBatch late;
  TelemetryStore::put(late, "a", {{kHour + 5, "load", 100}, {4 * kHour + 5, "load", 50}});
  ASSERT_OK(store->write(late));
  tidied(6 * kHour);
  tidied(6 * kHour);
  const auto hours = telemetry.buckets(kHour, "a", "load", kHour, 10);
  ASSERT_EQ(hours->size(), 5u);
  EXPECT_EQ((*hours)[0].sum.count, 181u);
  EXPECT_EQ((*hours)[0].sum.most, 100);
  EXPECT_EQ((*hours)[3].sum.count, 181u);
  const auto minute = telemetry.buckets(kMinute, "a", "load", 4 * kHour, 1);
  EXPECT_EQ((*minute)[0].sum.total, 53);
  // In the end all of it goes.
  tidied(100 * kHour);
  tidied(100 * kHour);
  EXPECT_TRUE(all(kHour).empty());
}

struct CatalogTest : ::testing::Test {
  TemporaryFolder folder;
  ManualClock clock;
  std::unique_ptr<Store> store = make_memory_store();
  Catalog catalog{folder / "data", *store, clock};
  void SetUp() override { ASSERT_OK(catalog.clean()); }
  std::size_t kept(const char* name) {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(folder / "data" / name), {}));
  }
};

TEST_F(CatalogTest, TeachersAreKeptByHashAndConverted) {
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const auto first = catalog.import_teacher(folder / "m", "tiny");
  ASSERT_OK(first);
  EXPECT_TRUE(std::filesystem::exists(catalog.teacher_gguf(first->id)));
  EXPECT_EQ(catalog.import_teacher(folder / "m", "")->id, first->id);
  EXPECT_EQ(kept("teachers"), 1u);
  EXPECT_EQ(catalog.find_teacher("tiny")->id, first->id);
  EXPECT_EQ(catalog.find_teacher(first->id.substr(0, 8))->id, first->id);
  EXPECT_EQ(catalog.find_teacher("nobody").error().code, ErrorCode::kNotFound);
  ASSERT_OK(testing::write_tiny_model(folder / "n", ModelFamily::kGpt2, 2));
  EXPECT_EQ(catalog.import_teacher(folder / "n", "tiny").error().code, ErrorCode::kConflict);
  ASSERT_OK(catalog.remove_teacher("tiny"));
  EXPECT_EQ(kept("teachers"), 0u);
}

TEST_F(CatalogTest, SmallClassifiersAreTeachersToo) {
  SeededRandom random(5);
  const ClassifierConfig config = testing::random_classifier(ClassifierFamily::kCnn, random);
  ASSERT_OK(write_classifier_folder(folder / "m", config, testing::random_weights(config, 1),
                                    SafeTensor::DType::kF32));
  const auto record = catalog.import_teacher(folder / "m", "eye");
  ASSERT_OK(record);
  EXPECT_EQ(record->family, "cnn");
  EXPECT_EQ(record->parameters, parameter_count(config));
  const auto gguf = GgufFile::open(catalog.teacher_gguf(record->id));
  ASSERT_OK(gguf);
  EXPECT_EQ(*read_gguf_classifier_config(*gguf), config);
}

TEST_F(CatalogTest, BadTeachersLeaveNothing) {
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const std::string weights = *read_file(folder / "m/model.safetensors");
  ASSERT_OK(write_file_atomic(folder / "m/model.safetensors", weights.substr(0, weights.size() / 2)));
  const auto truncated = catalog.import_teacher(folder / "m", "");
  ASSERT_FALSE(truncated);
  EXPECT_EQ(truncated.error().code, ErrorCode::kCorrupt);
  ASSERT_OK(write_file_atomic(folder / "m/model.safetensors", "PK\x03\x04 this is a pickle, really"));
  EXPECT_NE(catalog.import_teacher(folder / "m", "").error().message.find("pickle"), std::string::npos);
  EXPECT_EQ(catalog.import_teacher(folder / "none", "").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(kept("teachers"), 0u);
}

TEST_F(CatalogTest, DatasetsNameTheLine) {
  ASSERT_OK(write_file_atomic(folder / "good.jsonl", testing::tiny_corpus_jsonl(5, 1)));
  const auto good = catalog.import_dataset(folder / "good.jsonl", "g");
  ASSERT_OK(good);
  EXPECT_EQ(good->documents, 5u);
  EXPECT_EQ(catalog.find_dataset("g")->id, good->id);
  const auto refused = [&](const std::string& bytes) {
    EXPECT_OK(write_file_atomic(folder / "bad.jsonl", bytes));
    const auto result = catalog.import_dataset(folder / "bad.jsonl", "");
    EXPECT_FALSE(result);
    return result ? std::string() : result.error().describe();
  };
  EXPECT_NE(refused("{\"text\":\"a\"}\n{\"txt\":1}\n").find("line:2"), std::string::npos);
  EXPECT_NE(refused("{\"text\":\"a\"}\nnot json\n").find("line:2"), std::string::npos);
  EXPECT_NE(refused("").find("no documents"), std::string::npos);
  EXPECT_NE(refused("\n{\"text\":\"\"}\n").find("no documents"), std::string::npos);
  EXPECT_EQ(catalog.import_dataset("/dev/zero", "").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(catalog.import_teacher("/dev/zero", "").error().code, ErrorCode::kInvalid);
  ASSERT_OK(write_file_atomic(folder / "t.txt", "one\r\ntwo\r\n\r\nthree\n  \nfour\n"));
  EXPECT_EQ(catalog.import_dataset(folder / "t.txt", "")->documents, 3u);
}

}  // namespace
}  // namespace retort
