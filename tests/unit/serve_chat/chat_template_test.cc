#include "agent/serve/chat/chat_template.h"

#include "common/core/file.h"
#include "tests/support/support.h"

namespace retort {
namespace {

Result<std::string> render(std::string_view source, const json::object& variables = {}) {
  return RETORT_TRY(ChatTemplate::parse(source, "template")).render(variables);
}

TEST(ChatTemplate, GivesWhatJinjaGives) {  // cases.json is made by expect.py
  const auto text = read_file(testing::source("tests/unit/serve_chat/cases.json"));
  ASSERT_OK(text);
  const json::value document = json::parse(*text);
  int rendered = 0, refused = 0;
  for (const json::value& entry : document.at("cases").as_array()) {
    const json::object& c = entry.as_object();
    const std::string name(c.at("name").as_string());
    const auto* own = c.if_contains("variables");
    const auto out = render(std::string_view(c.at("template").as_string()),
                            (own != nullptr ? *own : document.at("variables")).as_object());
    if (const json::value* expected = c.if_contains("expected")) {
      ++rendered;
      EXPECT_TRUE(out.has_value()) << name << ": " << (out ? "" : out.error().describe());
      if (out) {
        EXPECT_EQ(*out, std::string_view(expected->as_string())) << name;
      }
    } else {
      ++refused;
      EXPECT_FALSE(out.has_value()) << name << " gave " << *out;
    }
  }
  EXPECT_GT(rendered, 30);
  EXPECT_GT(refused, 15);
}

TEST(ChatTemplate, ErrorsSayWhere) {
  const auto at = [](std::string_view source) { return render(source).error().describe(); };
  EXPECT_EQ(at("a\nb\n{{ missing.x }}"), "template:3: 'missing' is undefined");
  EXPECT_EQ(at("{% if true %}\n"), "template:1: 'endif' is missing");
  EXPECT_EQ(
      at("\n{% include 'x' %}"),
      "template:2: the statement 'include' is not supported; if, for, set, macro, break and continue are");
  EXPECT_EQ(at("{{ raise_exception('turns!') }}"), "template:1: turns!");
  EXPECT_EQ(at("{{ 'x' | frobnicate }}"), "template:1: the filter 'frobnicate' is not supported");
}

TEST(ChatTemplate, WorkIsBounded) {
  for (const char* source : {
           "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
           "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
           "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
           "{% set ns = namespace(l=[]) %}{% for a in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}",
           "{% set ns = namespace() %}{% set ns.me = ns %}",
           "{% set ns = namespace() %}{% set l = [ns] %}",
           "{{ 'x' * 9000000000000000000 }}",
           "{{ range(9000000000000000000) }}",
           "{{ ('x' * 30000000) | list | length }}",  // a gigabyte of values
           "{{ ('x ' * 15000000).split() | length }}",
           "{{ ('x' * 30000000)[::2] | length }}",
           "{{ 9223372036854775807 + 1 }}",
           "{{ (0 - 9223372036854775807 - 1) // -1 }}",
       })
    EXPECT_FALSE(render(source).has_value()) << source;
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "(";
  EXPECT_FALSE(render("{{ " + deep).has_value());
  std::string sum = "{{ 1";
  for (int i = 0; i < 100'000; ++i) sum += " + 1";
  EXPECT_FALSE(render(sum + " }}").has_value());
  std::string blocks;
  for (int i = 0; i < 10'000; ++i) blocks += "{% if true %}";
  EXPECT_FALSE(render(blocks).has_value());
}

}  // namespace
}  // namespace retort
