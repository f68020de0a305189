#include "coordinator/cli/views.h"

#include <gtest/gtest.h>

namespace retort::cli {
namespace {

constexpr UnixMillis kNow = 1'800'000'000'000;

json::array items(std::string_view text) { return json::parse(text).get_array(); }

TEST(CliViews, ClassesSayTheirRulesInWords) {
  EXPECT_EQ(classes_table(items(R"([{"name":"small","priority":2,"rules":{"min_memory_bytes":0,
      "max_memory_bytes":50331648,"min_cpu":0.5,"labels":{"site":"hall"}},"budgets":{"artifact_bytes":1258291,
      "p95_token_seconds":0.02},"artifact":"0123456789abcdef","generation":4},{"name":"rest"}])")),
            "NAME   PRIORITY  RULES                                      FILE <=  MEMORY <=  P95/TOKEN <=  "
            "ARTIFACT      GENERATION\n"
            "small         2  memory <= 48.0 MiB, cpu >= 0.5, site=hall  1.2 MiB          -         20 ms  "
            "0123456789ab           4\n"
            "rest          -  any device                                       -          -             -  "
            "-                      -\n");
}

TEST(CliViews, TimesAreToldFromNow) {
  const std::string table =
      jobs_table(items(R"([{"id":"job-1","class":null,"state":"failed","created":1799999940000,
      "error":{"message":"needs 3 GiB"}}])"),
                 kNow);
  EXPECT_NE(table.find("1 min 0 s ago"), std::string::npos) << table;
  EXPECT_NE(table.find("needs 3 GiB"), std::string::npos) << table;
}

TEST(CliViews, AnObjectIsShownFlat) {
  EXPECT_EQ(object_view(json::parse(R"({"id":"x","bytes":2048,"on":true,"none":null,
      "in":{"list":[1,2],"objects":[{"a":1.5}]},"since":1799999990000})")
                            .get_object(),
                        kNow),
            "id               x\n"
            "bytes            2.0 KiB\n"
            "on               yes\n"
            "none             -\n"
            "in.list          1, 2\n"
            "in.objects[0].a  1.5\n"
            "since            2027-01-15T07:59:50Z (10 s ago)\n");
}

TEST(CliViews, MissingAndOddMembersDoNotHurt) {
  for (const char* text :
       {"[{}]", "[[]]", "[1]", R"([{"profile":3,"actual":"x","last_seen":"now","bytes":"many"}])"}) {
    const json::array odd = items(text);
    EXPECT_FALSE(teachers_table(odd, kNow).empty());
    EXPECT_FALSE(datasets_table(odd, kNow).empty());
    EXPECT_FALSE(classes_table(odd).empty());
    EXPECT_FALSE(jobs_table(odd, kNow).empty());
    EXPECT_FALSE(artifacts_table(odd, kNow).empty());
    EXPECT_FALSE(devices_table(odd, kNow).empty());
    EXPECT_FALSE(tokens_table(odd, kNow).empty());
    EXPECT_FALSE(telemetry_table(odd).empty());
  }
}

}  // namespace
}  // namespace retort::cli
