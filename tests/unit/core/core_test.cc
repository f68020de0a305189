#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/documents.h"
#include "common/core/fail_point.h"
#include "common/core/file.h"
#include "common/core/hex.h"
#include "common/core/json.h"
#include "common/core/random.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/core/utf8.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256, FileRange) {
  TemporaryFolder folder;
  ASSERT_OK(write_file_atomic(folder / "f", "xxabcyy"));
  EXPECT_EQ(*sha256_file_hex(folder / "f", 2, 3), sha256_hex("abc"));
  EXPECT_EQ(sha256_file_hex(folder / "f", 2, 9).error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(sha256_file_hex(folder / "f", 8).error().code, ErrorCode::kCorrupt);
}

TEST(FailPoint, EndsTheProcessAtTheNamedPassing) {
  // In a child that has not asked yet: the variable is read once.
  const auto passings = [](const char* armed) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::setenv("RETORT_FAIL_POINT", armed, 1);
      fail_point("other");
      fail_point("test.here");
      fail_point("test.here");
      ::_exit(7);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  };
  EXPECT_EQ(passings("test.here"), -SIGKILL);
  EXPECT_EQ(passings("test.here:2"), -SIGKILL);
  EXPECT_EQ(passings("test.here:3"), 7);
  EXPECT_EQ(passings("test.elsewhere"), 7);
  EXPECT_EQ(passings(""), 7);
}

TEST(Hex, RoundTripAndRefusal) {
  EXPECT_EQ(to_hex(std::string("\x00\xff\x10", 3)), "00ff10");
  EXPECT_EQ(*from_hex("00FF10"), std::string("\x00\xff\x10", 3));
  EXPECT_FALSE(from_hex("abc"));
  EXPECT_FALSE(from_hex("zz"));
}

TEST(File, AtomicWriteReplacesAndLeavesNoTemporary) {
  TemporaryFolder folder;
  ASSERT_OK(write_file_atomic(folder / "a", "one"));
  ASSERT_OK(write_file_atomic(folder / "a", "two"));
  EXPECT_EQ(*read_file(folder / "a"), "two");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
  EXPECT_EQ(write_file_atomic(folder / "no/such/folder", "x").error().code, ErrorCode::kNotFound);
}

TEST(File, CopyIsWholeOrNotThere) {
  TemporaryFolder folder;
  const std::string bytes = std::string(3 << 20, 'x') + "end";
  ASSERT_OK(write_file_atomic(folder / "a", bytes));
  ASSERT_OK(copy_file_atomic(folder / "a", folder / "b"));
  EXPECT_EQ(*read_file(folder / "b"), bytes);
  EXPECT_EQ(copy_file_atomic(folder / "none", folder / "c").error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(folder / "c"));
}

TEST(File, LockIsHeldAcrossProcessesAndFreedByDeath) {
  TemporaryFolder folder;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto lock = FileLock::take(folder / "lock");
    [[maybe_unused]] const ssize_t n = write(ready[1], lock ? "y" : "n", 1);
    pause();
    _exit(0);
  }
  char answer = 0;
  ASSERT_EQ(read(ready[0], &answer, 1), 1);
  ASSERT_EQ(answer, 'y');
  EXPECT_TRUE(FileLock::held(folder / "lock"));
  const auto second = FileLock::take(folder / "lock");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kConflict);
  EXPECT_NE(second.error().message.find(std::to_string(child)), std::string::npos);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(FileLock::held(folder / "lock"));
  EXPECT_OK(FileLock::take(folder / "lock"));
}

TEST(Units, Sizes) {
  EXPECT_EQ(*parse_bytes("350K"), 350u * 1024);
  EXPECT_EQ(*parse_bytes("1.5 MiB"), 3u << 19);
  EXPECT_FALSE(parse_bytes("12 apples"));
  EXPECT_FALSE(parse_bytes("-1"));
  EXPECT_EQ(format_bytes(340), "340 B");
  EXPECT_EQ(format_bytes(1 << 20), "1.0 MiB");
  EXPECT_EQ(format_seconds(200), "3 min 20 s");
}

TEST(Json, ErrorsSayWhere) {
  const auto bad = parse_json("{\n \"a\": 1,\n oops}", "config.json");
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().where, "config.json");
  EXPECT_NE(bad.error().message.find("line 3"), std::string::npos) << bad.error().message;
  EXPECT_FALSE(parse_json("{} x", "t"));
  EXPECT_FALSE(parse_json(std::string(100, '['), "t"));
  const auto good = parse_json(R"({"n": 7, "s": "x"})", "t");
  ASSERT_OK(good);
  EXPECT_EQ(*json_uint(good->get_object(), "n", "t"), 7u);
  EXPECT_FALSE(json_uint(good->get_object(), "n", "t", 6));
  EXPECT_FALSE(json_string(good->get_object(), "n", "t"));
  EXPECT_FALSE(json_number(parse_json(R"({"x": 1e999})", "t")->get_object(), "x", "t"));
  EXPECT_EQ(json_string(good->get_object(), "missing", "t").error().message, "'missing' is missing");
}

TEST(Json, NearestSuggestsOnlyWhatIsClose) {
  EXPECT_EQ(nearest("temperatur", {"temperature", "steps"}), "temperature");
  EXPECT_EQ(nearest("zzzzzz", {"temperature", "steps"}), std::nullopt);
}

TEST(SeededRandom, RepeatsItself) {
  SeededRandom a(7), b(7), c(8);
  const std::uint64_t first = a.next_u64();
  EXPECT_EQ(first, b.next_u64());
  EXPECT_NE(first, c.next_u64());
}

TEST(Utf8, BecomesValidAndIsCutBetweenCharacters) {
  EXPECT_EQ(valid_utf8("plain \xc3\xa9 \xf0\x9f\x98\x80"), "plain \xc3\xa9 \xf0\x9f\x98\x80");
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(valid_utf8("a\xff\x62"), "a" + mark + "b");
  EXPECT_EQ(valid_utf8("\xc0\x80"), mark + mark);             // overlong
  EXPECT_EQ(valid_utf8("\xed\xa0\x80"), mark + mark + mark);  // a surrogate
  EXPECT_EQ(valid_utf8("\xf0\x9f\x98"), mark + mark + mark);  // cut off
  EXPECT_EQ(valid_utf8("ab\xc3\xa9", 3), "ab");
  EXPECT_EQ(valid_utf8("ab\xc3\xa9", 4), "ab\xc3\xa9");
  EXPECT_EQ(valid_utf8("\x80\x80\x80\x80\x80", 4), mark);  // no beginning to cut before
  EXPECT_EQ(valid_utf8("abc", 0), "");
  EXPECT_TRUE(is_utf8("plain \xc3\xa9 \xf0\x9f\x98\x80"));
  for (const char* bad : {"a\xff", "\xc0\x80", "\xed\xa0\x80", "\xf0\x9f\x98"})
    EXPECT_FALSE(is_utf8(bad)) << bad;
}

TEST(File, APipeIsNoFileAndHoldsNobodyUp) {
  TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "p").c_str(), 0600), 0);
  EXPECT_EQ(File::open_read(folder / "p").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(MappedFile::open(folder / "p").error().code, ErrorCode::kInvalid);
  EXPECT_FALSE(read_file(folder / "p").has_value());
}

}  // namespace
TEST(Documents, PromptsAndCompletionsAreJoined) {
  const auto read = [](const char* line) {
    std::string found;
    const auto count =
        visit_documents(line, DocumentFormat::kJsonLines, "d.jsonl", [&](std::string document) {
          found = std::move(document);
          return true;
        });
    return count ? found : count.error().describe();
  };
  EXPECT_EQ(read(R"({"prompt": "two and two ", "completion": "are four"})"), "two and two are four");
  EXPECT_EQ(read(R"({"prompt": "x", "text": "whole"})"), "whole");
  EXPECT_NE(read(R"({"prompt": "x"})").find("completion"), std::string::npos);
  EXPECT_NE(read(R"({"messages": []})").find("chat template"), std::string::npos);
}

TEST(Documents, ParagraphsAndJsonLinesByOneRule) {
  testing::TemporaryFolder folder;
  const auto documents = [&](const char* name, const char* text, std::uint64_t limit = 0) {
    EXPECT_OK(write_file_atomic(folder / name, text));
    return read_documents(folder / name, limit);
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(*documents("a.txt", "one\ntwo\n\n\nthree\n"), (Texts{"one\ntwo\n", "three\n"}));
  EXPECT_EQ(*documents("b.txt", "\r\n one\r\n \t\r\ntwo"), (Texts{" one\n", "two\n"}));
  EXPECT_EQ(*documents("c.txt", "one\n\ntwo\n\nthree\n", 2), (Texts{"one\n", "two\n"}));
  EXPECT_EQ(*documents("d.jsonl", "{\"text\": \"x\"}\r\n\n{\"text\": \" \"}\n{\"text\": \"y\\n\\nz\"}"),
            (Texts{"x", "y\n\nz"}));
  for (const char* nothing : {"", "\n", "{\"text\": \"\"}"})
    EXPECT_NE(documents("e.jsonl", nothing).error().message.find("holds no documents"), std::string::npos);
  EXPECT_NE(documents("f.jsonl", "{\"text\": \"x\"}\n{\"txt\": 1}").error().where.find("f.jsonl:2"),
            std::string::npos);
}

}  // namespace retort
