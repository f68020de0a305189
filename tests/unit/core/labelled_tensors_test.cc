#include "common/core/labelled_tensors.h"

#include "common/core/base64.h"
#include "common/core/file.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

TEST(Base64, RoundsAndRefusals) {
  const auto text = [](std::string_view encoded) -> std::string {
    const auto bytes = decode_base64(encoded);
    if (!bytes) return "refused";
    return {reinterpret_cast<const char*>(bytes->data()), bytes->size()};
  };
  // RFC 4648 §10.
  EXPECT_EQ(text(""), "");
  EXPECT_EQ(text("Zg=="), "f");
  EXPECT_EQ(text("Zm8="), "fo");
  EXPECT_EQ(text("Zm9v"), "foo");
  EXPECT_EQ(text("Zm9vYmFy"), "foobar");
  EXPECT_EQ(text("Zg"), "f");  // without padding
  EXPECT_EQ(text("//+/"), "\xff\xff\xbf");
  for (const char* bad : {"Z", "Zg=", "Zg===", "Z===", "Zh==", "Zm9=", "Zm 9", "Zm9v=", "====", "Zm-_"})
    EXPECT_EQ(text(bad), "refused") << bad;
  for (const std::string_view bytes : {"", "f", "fo", "foo", "foobar", "\xff\xff\xbf"})
    EXPECT_EQ(text(encode_base64(std::as_bytes(std::span(bytes)))), bytes);
  EXPECT_EQ(encode_base64(std::as_bytes(std::span(std::string_view("fo")))), "Zm8=");
}

TEST(Tensor, FlatNestedNamedAndWrong) {
  const auto read = [](const char* text, const TensorShape& shape) {
    std::vector<float> out{9};
    const auto done = read_tensor(*parse_json(text, "t"), shape, "t", out);
    return done ? out : std::vector<float>{};
  };
  using Values = std::vector<float>;
  const TensorShape image{{2, 1, 2}, {}}, grey{{1, 2, 2}, {}}, row{{2}, {"a", "b"}};
  EXPECT_EQ(read("[1,2,3,4]", image), (Values{9, 1, 2, 3, 4}));
  EXPECT_EQ(read("[[[1,2]],[[3,4e0]]]", image), (Values{9, 1, 2, 3, 4}));
  EXPECT_EQ(read("[[1,2],[3,4]]", grey), (Values{9, 1, 2, 3, 4}));
  EXPECT_EQ(read("[[[1,2],[3,4]]]", grey), (Values{9, 1, 2, 3, 4}));
  EXPECT_EQ(read(R"({"b":2,"a":1})", row), (Values{9, 1, 2}));
  for (const char* bad :
       {"[1,2,3]", "[[1,2],[3,4]]", "[[[1,2]],[[3]]]", "[]", "[[]]", "1", "null", "[1,2,3,\"4\"]",
        "[1,2,3,1e39]", "[1,2,3,1e999]", "{\"a\":1}", "[[[1,2]],[[3,[4]]]]"})
    EXPECT_EQ(read(bad, image), Values{}) << bad;
  for (const char* bad : {R"({"a":1})", R"({"a":1,"b":2,"c":3})", R"({"a":1,"b":"2"})"})
    EXPECT_EQ(read(bad, row), Values{}) << bad;
}

TEST(LabelledTensors, JsonLinesNameTheLine) {
  TemporaryFolder folder;
  const TensorShape shape{{2}, {}};
  const std::vector<std::string> labels{"ok", "bad"};
  std::vector<std::pair<std::vector<float>, std::size_t>> seen;
  const auto visit = [&](std::string_view text, std::uint64_t most = 100) -> Result<std::uint64_t> {
    EXPECT_OK(write_file_atomic(folder / "d.jsonl", text));
    seen.clear();
    return visit_labelled_tensors(folder / "d.jsonl", {}, shape, labels,
                                  [&](std::span<const float> input, std::size_t label) {
                                    seen.emplace_back(std::vector<float>(input.begin(), input.end()), label);
                                    return seen.size() < most;
                                  });
  };
  const std::string good =
      "{\"input\":[1,2],\"label\":\"bad\"}\r\n\n{\"input\":[3,4],\"label\":0}\n{\"input\":[5,6],\"label\":"
      "\"ok\"}";
  EXPECT_EQ(*visit(good), 3u);
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].second, 1u);
  EXPECT_EQ(seen[1].first, (std::vector<float>{3, 4}));
  EXPECT_EQ(*visit(good, 2), 2u);
  for (const char* bad : {"{\"input\":[1,2]}", "{\"label\":0}", "{\"input\":[1],\"label\":0}",
                          "{\"input\":[1,2],\"label\":\"other\"}", "{\"input\":[1,2],\"label\":2}",
                          "{\"input\":[1,2],\"label\":-1}", "[1]", "{"}) {
    const auto refused = visit("{\"input\":[1,2],\"label\":0}\n" + std::string(bad) + "\n");
    ASSERT_FALSE(refused) << bad;
    EXPECT_NE(refused.error().where.find("d.jsonl:2"), std::string::npos) << refused.error().describe();
  }
  EXPECT_FALSE(visit("\n"));
}

TEST(LabelledTensors, IdxFilesOfBytes) {
  TemporaryFolder folder;
  const auto big_endian = [](std::uint32_t value) {
    return std::string{static_cast<char>(value >> 24), static_cast<char>(value >> 16),
                       static_cast<char>(value >> 8), static_cast<char>(value)};
  };
  const std::string images =
      big_endian(0x803) + big_endian(2) + big_endian(1) + big_endian(2) + "\x01\xff\x02\x03";
  const std::string places = big_endian(0x801) + big_endian(2) + std::string("\x01\x00", 2);
  const std::vector<std::string> labels{"a", "b"};
  std::vector<float> seen;
  const auto visit = [&](const std::string& data, const std::string& its_labels, std::size_t width) {
    EXPECT_OK(write_file_atomic(folder / "i", data));
    EXPECT_OK(write_file_atomic(folder / "l", its_labels));
    seen.clear();
    return visit_labelled_tensors(folder / "i", folder / "l", {{1, 1, width}, {}}, labels,
                                  [&](std::span<const float> input, std::size_t label) {
                                    seen.insert(seen.end(), input.begin(), input.end());
                                    seen.push_back(static_cast<float>(label));
                                    return true;
                                  });
  };
  EXPECT_EQ(*visit(images, places, 2), 2u);
  EXPECT_EQ(seen, (std::vector<float>{1, 255, 1, 2, 3, 0}));
  EXPECT_FALSE(visit(images, places, 3));
  EXPECT_FALSE(visit(images.substr(0, images.size() - 1), places, 2));
  EXPECT_FALSE(visit(images, places.substr(0, 8), 2));
  EXPECT_FALSE(visit(images, big_endian(0x801) + big_endian(1) + std::string("\x01", 1), 2));
  EXPECT_FALSE(visit(images, big_endian(0x801) + big_endian(2) + std::string("\x01\x02", 2), 2));
  EXPECT_FALSE(
      visit(big_endian(0x803) + big_endian(0xffffffff) + big_endian(0xffffffff) + big_endian(0xffffffff),
            places, 2));
  EXPECT_NE(visit("\x1f\x8b" + images, places, 2).error().message.find("compressed"), std::string::npos);
}

}  // namespace
}  // namespace retort
