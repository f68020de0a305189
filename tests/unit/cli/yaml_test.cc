#include "coordinator/cli/yaml.h"

#include "tests/support/support.h"

namespace retort::cli {
namespace {

TEST(CliYaml, DocumentsBecomeJsonAndBack) {
  const auto documents = parse_yaml(
      "kind: Class\nrules: {min_cpu: 1.5, max_memory_bytes: 64MiB, labels: {floor: \"2\"}}\non: true\nnone: "
      "~\n---\n"
      "[1, -2, 1e400]\n",
      "f.yaml");
  ASSERT_OK(documents);
  ASSERT_EQ(documents->size(), 2u);
  EXPECT_EQ(json::serialize((*documents)[0]),
            R"({"kind":"Class","rules":{"min_cpu":1.5E0,"max_memory_bytes":"64MiB","labels":{"floor":"2"}},)"
            R"("on":true,"none":null})");
  EXPECT_EQ((*documents)[1].as_array()[1].as_int64(), -2);
  EXPECT_TRUE((*documents)[1].as_array()[2].is_string());  // no number holds it
  const auto again = parse_yaml(to_yaml((*documents)[0]), "again");
  ASSERT_OK(again);
  EXPECT_EQ((*again)[0], (*documents)[0]);
}

TEST(CliYaml, BadAndBoundlessTextsAreRefused) {
  for (const char* bad : {"a: [", "a: 1\na: 2\n", "? [x]\n: 1\n", "\t- a"})
    EXPECT_FALSE(parse_yaml(bad, "f").has_value()) << bad;
  EXPECT_FALSE(parse_yaml(std::string(40, '[') + std::string(40, ']'), "deep").has_value());
  std::string bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c <= 'h'; ++c) {
    const std::string before = fmt::format("*{}", static_cast<char>(c - 1));
    bomb += fmt::format("{}: &{} [", c, c);
    for (int i = 0; i < 10; ++i) bomb += before + (i < 9 ? ", " : "]\n");
  }
  EXPECT_FALSE(parse_yaml(bomb, "bomb").has_value());
}

}  // namespace
}  // namespace retort::cli
