#include <cmath>
#include <regex>

#include "agent/serve/grammar/json_schema.h"
#include "agent/serve/grammar/matcher.h"
#include "agent/serve/runtime/sampler.h"
#include "common/core/random.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort::grammar {
namespace {

std::shared_ptr<const TokenTrie> trie(std::uint32_t n_vocab = 300) {
  const auto tokenizer = Tokenizer::from_huggingface_text(testing::tiny_tokenizer_json(n_vocab),
                                                          R"({"eos_token":"<|endoftext|>"})", "tiny");
  EXPECT_OK(tokenizer);
  return std::make_shared<TokenTrie>(*tokenizer);
}

json::value parsed(std::string_view text) { return *parse_json(text, "test"); }

/// Whether a text is of the schema's language.
class Language {
 public:
  explicit Language(std::string_view schema, SchemaOptions options = {}) {
    const json::value value = parsed(schema);
    auto network = compile_schema(value, options);
    if (network)
      masks_ = std::make_shared<Masks>(*network, trie());
    else
      error_ = network.error().message;
  }
  bool has(std::string_view text) const {
    if (!masks_) return false;
    Matcher matcher(masks_);
    return matcher.read(text) && matcher.may_end();
  }
  const std::string& error() const { return error_; }

 private:
  std::shared_ptr<Masks> masks_;
  std::string error_;
};

TEST(TokenTrie, HasEveryTokenOnceInItsPlace) {
  const auto tokenizer = Tokenizer::from_huggingface_text(testing::tiny_tokenizer_json(1500), "", "tiny");
  ASSERT_OK(tokenizer);
  const TokenTrie t(*tokenizer);
  EXPECT_TRUE(t.writes_ascii() && t.writes_utf8());
  std::vector<std::uint8_t> path(t.deepest());
  std::size_t seen = 0;
  for (std::size_t i = 0; i + 1 < t.nodes().size(); ++i) {
    const TokenTrie::Node& node = t.nodes()[i];
    path[node.depth] = node.byte;
    for (std::uint32_t k = node.first_token; k < t.nodes()[i + 1].first_token; ++k, ++seen)
      EXPECT_EQ(tokenizer->piece(t.tokens()[k]), std::string(path.begin(), path.begin() + node.depth + 1));
    ASSERT_GT(node.after, i);
    ASSERT_LE(node.after, t.nodes().size() - 1);
  }
  EXPECT_EQ(seen, t.tokens().size());
  EXPECT_EQ(seen + t.ends().size(), 1500u);
}

TEST(JsonSchema, Types) {
  EXPECT_TRUE(Language(R"({"type":"null"})").has("null"));
  EXPECT_FALSE(Language(R"({"type":"null"})").has("nul"));
  EXPECT_TRUE(Language(R"({"type":["boolean","null"]})").has("false"));
  const Language number(R"({"type":"number"})"), integer(R"({"type":"integer"})"),
      string(R"({"type":"string"})");
  for (const char* text : {"0", "-0", "12", "-3.25", "1e5", "1.5E-07", "999999999999999"})
    EXPECT_TRUE(number.has(text)) << text;
  for (const char* text : {"", "-", "01", "1.", ".5", "1e", "1e+", "+1", "0x1", "NaN"})
    EXPECT_FALSE(number.has(text)) << text;
  for (const char* text : {"0", "-1", "907"}) EXPECT_TRUE(integer.has(text)) << text;
  for (const char* text : {"1.0", "1e2", "--1", "-0"}) EXPECT_FALSE(integer.has(text)) << text;
  for (const char* text : {R"("")", R"("a\n\u00e9\"")", R"("é漢😀")", R"("\ud83d\ude00")"})
    EXPECT_TRUE(string.has(text)) << text;
  for (const char* text :
       {R"(")", R"("\x")", R"("\ud83d")", R"("\ude00")", "\"\n\"", "\"\xff\"", "\"\xed\xa0\x80\""})
    EXPECT_FALSE(string.has(text)) << text;
}

TEST(JsonSchema, Objects) {
  const Language t(
      R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":true},"required":["b"],"additionalProperties":false})");
  for (const char* text : {R"({"b":""})", R"({"a":1,"b":"x"})",
                           R"({ "a": 1, "b": "x", "c": [1, {"q": null}]})", "{\n  \"b\": \"x\"\n}"})
    EXPECT_TRUE(t.has(text)) << text;
  for (const char* text : {"{}", R"({"a":1})", R"({"b":"x","a":1})", R"({"b":"x",})", R"({,"b":"x"})",
                           R"({"b":"x","d":1})", R"({"b":"x" "c":1})"})
    EXPECT_FALSE(t.has(text)) << text;
  const Language optional(
      R"({"type":"object","properties":{"a":true,"b":true},"additionalProperties":false})");
  for (const char* text : {"{}", R"({"a":1})", R"({"b":1})", R"({"a":1,"b":2})"})
    EXPECT_TRUE(optional.has(text)) << text;
  const Language map(R"({"type":"object","additionalProperties":{"type":"integer"}})");
  EXPECT_TRUE(map.has(R"({"x":1, "y":2})"));
  EXPECT_FALSE(map.has(R"({"x":"1"})"));
  const Language named(R"({"type":"object","required":["k"]})");
  EXPECT_TRUE(named.has(R"({"k":[]})"));
  EXPECT_FALSE(named.has("{}"));
}

/// Were any step quadratic in their number, this would take minutes.
TEST(JsonSchema, ManyMembers) {
  json::array names;
  json::object properties, written;
  for (int i = 0; i < 15'000; ++i) {
    names.emplace_back(fmt::format("r{:05}", i));
    properties[fmt::format("r{:05}", i)] = true;
    written[fmt::format("r{:05}", i)] = i;
  }
  const Language required(json::serialize(json::object{{"type", "object"}, {"required", names}}));
  EXPECT_TRUE(required.has(json::serialize(written))) << required.error();
  EXPECT_FALSE(required.has(R"({"r00000":0})"));
  const Language both(
      json::serialize(json::object{{"type", "object"}, {"properties", properties}, {"required", names}}));
  EXPECT_TRUE(both.has(json::serialize(written))) << both.error();
}

TEST(JsonSchema, ArraysStringsAndValues) {
  const Language t(R"({"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":3})");
  EXPECT_TRUE(t.has("[true]"));
  EXPECT_TRUE(t.has("[true,false, true]"));
  for (const char* text : {"[]", "[true,true,true,true]", "[1]", "[true,]"})
    EXPECT_FALSE(t.has(text)) << text;
  EXPECT_TRUE(Language(R"({"type":"array","maxItems":0})").has("[]"));
  EXPECT_FALSE(Language(R"({"type":"array","maxItems":0})").has("[1]"));
  const Language least(R"({"type":"array","minItems":2})");
  EXPECT_FALSE(least.has("[1]"));
  EXPECT_TRUE(least.has("[1,[],{}]"));
  const Language length(R"({"type":"string","minLength":2,"maxLength":3})");
  for (const char* text : {R"("ab")", R"("a\u00e9漢")", R"("😀😀")"}) EXPECT_TRUE(length.has(text)) << text;
  for (const char* text : {R"("a")", R"("abcd")"}) EXPECT_FALSE(length.has(text)) << text;
  const Language choice(R"({"enum":["a\"b",1,null,{"x":[1,2]}]})");
  for (const char* text : {R"("a\"b")", "1", "null", R"({"x":[1,2]})"}) EXPECT_TRUE(choice.has(text)) << text;
  EXPECT_FALSE(choice.has("2"));
  EXPECT_TRUE(Language(R"({"const":"é"})").has("\"é\""));
  EXPECT_TRUE(Language(R"({"const":"é😀"})", {.ascii = true}).has("\"\\u00e9\\ud83d\\ude00\""));
}

TEST(JsonSchema, RangesAgreeWithArithmetic) {
  SeededRandom random(3);
  for (int round = 0; round < 60; ++round) {
    const std::int64_t scale = round % 3 == 0 ? 15 : round % 3 == 1 ? 120 : 4000;
    const auto pick = [&] {
      return static_cast<std::int64_t>(random.next_u64() % static_cast<std::uint64_t>(2 * scale)) - scale;
    };
    std::int64_t low = pick(), high = pick();
    if (low > high) std::swap(low, high);
    const bool open_low = random.next_u64() % 2 != 0, open_high = random.next_u64() % 2 != 0;
    const std::string range = fmt::format(R"("{}":{},"{}":{}}})", open_low ? "exclusiveMinimum" : "minimum",
                                          low, open_high ? "exclusiveMaximum" : "maximum", high);
    const Language integer(R"({"type":"integer",)" + range), number(R"({"type":"number",)" + range);
    const auto inside = [&](double x) {
      return (open_low ? x > static_cast<double>(low) : x >= static_cast<double>(low)) &&
             (open_high ? x < static_cast<double>(high) : x <= static_cast<double>(high));
    };
    for (std::int64_t x = low - 12; x <= high + 12; x += 1 + (high - low) / 150) {
      EXPECT_EQ(integer.has(std::to_string(x)), inside(static_cast<double>(x))) << range << " " << x;
      EXPECT_EQ(number.has(std::to_string(x)), inside(static_cast<double>(x))) << range << " " << x;
      for (const char* fraction : {".5", ".001", ".0"}) {
        const std::string text = std::to_string(x) + fraction;
        const double value = std::stod(text);
        if (number.has(text)) {
          EXPECT_TRUE(inside(value)) << range << " " << text;
        }
        if (std::string(fraction) != ".0") {
          EXPECT_EQ(number.has(text), inside(value)) << range << " " << text;
        }
      }
    }
  }
}

TEST(JsonSchema, PatternsAgreeWithStdRegex) {
  const std::vector<std::string> texts = {
      "",  "a", "ab", "abc", "aab",  "b",  "0",    "12", "2024-01-31", "x_1",  "foo.bar",
      "A", "-", "é",  "a b", "aaaa", "ac", "abab", "z9", "[x]",        "a\"b", "a\\b"};
  for (const char* pattern : {"^a+b?$", "^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "b", "^(ab|c)*$", "^\\\\w+$",
                              "^[^a]*$", "a|^b$", "^(a|ab)(c|bc)?$", "^.{2,3}$", "\\\\d", "^[a-z][0-9]$",
                              "^\\\\[x\\\\]$", "^(?:a{2}){1,2}$", "^a.b$", "^$", "[\\\\s.]"}) {
    const Language t(std::string(R"({"type":"string","pattern":")") + pattern + "\"}");
    ASSERT_EQ(t.error(), "") << pattern;
    const std::regex expected(parsed(std::string("\"") + pattern + "\"").as_string().c_str());
    for (const std::string& text : texts) {
      if (text == "é") continue;  // two characters to std::regex
      EXPECT_EQ(t.has(json::serialize(json::value(text))), std::regex_search(text, expected))
          << pattern << " " << text;
    }
  }
  EXPECT_TRUE(Language(R"({"type":"string","pattern":"^[à-ü]$"})").has("\"é\""));
  EXPECT_FALSE(Language(R"({"type":"string","pattern":"^[à-ü]$"})").has("\"e\""));
}

TEST(JsonSchema, ReferencesRecurAndNestingIsBounded) {
  const Language tree(
      R"({"$ref":"#/$defs/t","$defs":{"t":{"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/t"}}},"required":["v"],"additionalProperties":false}}})",
      {.max_depth = 6});
  EXPECT_TRUE(tree.has(R"({"v":1,"kids":[{"v":2},{"v":3,"kids":[]}]})"));
  EXPECT_TRUE(tree.has(R"({"v":1,"kids":[{"v":2,"kids":[{"v":3}]}]})"));
  EXPECT_FALSE(tree.has(R"({"v":1,"kids":[{"v":2,"kids":[{"v":3,"kids":[{"v":4}]}]}]})"));
  EXPECT_NE(Language(R"({"$ref":"#"})").error(), "");
  EXPECT_NE(Language(R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})").error().find("begins with itself"),
            std::string::npos);
  EXPECT_NE(Language(R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})")
                .error()
                .find("no text"),
            std::string::npos);
}

TEST(JsonSchema, WhatIsNotSupportedIsNamedWithItsPath) {
  const auto error = [](std::string_view schema) { return Language(schema).error(); };
  EXPECT_NE(error(R"({"type":"object","properties":{"x":{"type":"array","uniqueItems":true}}})")
                .find("'uniqueItems' at #/properties/x"),
            std::string::npos);
  for (const char* keyword : {"oneOf", "not", "if", "patternProperties", "minProperties", "multipleOf",
                              "contains", "prefixItems", "dependentRequired"})
    EXPECT_NE(error(fmt::format(R"({{"{}":1}})", keyword)).find(fmt::format("'{}' at #", keyword)),
              std::string::npos)
        << keyword;
  for (const auto& [schema, part] : {
           std::pair{R"({"type":"strin"})", "'type' at #"},
           {R"({"type":"string","minimum":1})", "'minimum'"},
           {R"~({"type":"string","pattern":"(?=a)"})~", "looks around"},
           {R"({"type":"string","pattern":"a","maxLength":3})", "together with"},
           {R"~({"type":"string","pattern":"(((a{200}){200}){200})"})~", "too large"},
           {R"({"type":"integer","minimum":3,"maximum":2})", "no integer"},
           {R"({"type":"number","minimum":0.5})", "not whole"},
           {R"({"$ref":"http://x"})", "another document"},
           {R"({"$ref":"#/$defs/none"})", "not there"},
           {R"({"type":"string","enum":[1]})", "no value of its type"},
           {R"({"type":"array","maxItems":100000})", "above 4096"},
           {R"({"allOf":[{},{}]})", "more than one"},
           {R"({"required":["a"],"additionalProperties":false})", "forbids"},
           {R"({"items":false})", "#/items is false"},
       })
    EXPECT_NE(error(schema).find(part), std::string::npos) << schema << ": " << error(schema);
  EXPECT_EQ(error(R"({"title":"x","description":"y","type":"string","format":"date"})"), "");
}

// ---- random schemas, random logits ----

/// JSON Schema's meaning of the keywords that random_schema uses, over parsed values; nothing is shared with
/// the compiler.
bool valid(const json::value& v, const json::value& s, const json::value& root) {
  if (s.is_bool()) return s.as_bool();
  const json::object& o = s.as_object();
  if (o.contains("$ref"))
    return valid(v, root.at_pointer(std::string_view(o.at("$ref").as_string()).substr(1)), root);
  if (o.contains("anyOf")) {
    for (const json::value& choice : o.at("anyOf").as_array())
      if (valid(v, choice, root)) return true;
    return false;
  }
  if (o.contains("enum")) {
    for (const json::value& choice : o.at("enum").as_array())
      if (choice == v) return true;
    return false;
  }
  if (!o.contains("type")) return true;
  const std::string type(o.at("type").as_string());
  const auto limit = [&](const char* key, double fallback) {
    return o.contains(key) ? o.at(key).to_number<double>() : fallback;
  };
  if (type == "null") return v.is_null();
  if (type == "boolean") return v.is_bool();
  if (type == "integer" || type == "number") {
    if (!v.is_number() || (type == "integer" && v.is_double())) return false;
    const double x = v.to_number<double>();
    return x >= limit("minimum", -1e300) && x <= limit("maximum", 1e300);
  }
  if (type == "string") {
    if (!v.is_string()) return false;
    const std::string text(v.as_string());
    const auto length = std::count_if(text.begin(), text.end(),
                                      [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
    if (o.contains("pattern") && !std::regex_search(text, std::regex(o.at("pattern").as_string().c_str())))
      return false;
    return static_cast<double>(length) >= limit("minLength", 0) &&
           static_cast<double>(length) <= limit("maxLength", 1e9);
  }
  if (type == "array") {
    if (!v.is_array()) return false;
    const auto n = static_cast<double>(v.as_array().size());
    if (n < limit("minItems", 0) || n > limit("maxItems", 1e9)) return false;
    if (o.contains("items"))
      for (const json::value& item : v.as_array())
        if (!valid(item, o.at("items"), root)) return false;
    return true;
  }
  if (!v.is_object()) return false;
  const json::object none, &properties = o.contains("properties") ? o.at("properties").as_object() : none;
  if (o.contains("required"))
    for (const json::value& key : o.at("required").as_array())
      if (!v.as_object().contains(key.as_string())) return false;
  for (const auto& member : v.as_object()) {
    if (const json::value* of = properties.if_contains(member.key())) {
      if (!valid(member.value(), *of, root)) return false;
    } else if (o.contains("additionalProperties") &&
               !valid(member.value(), o.at("additionalProperties"), root)) {
      return false;
    }
  }
  return true;
}

json::value random_schema(SeededRandom& random, int depth) {
  const auto chance = [&](int in) { return random.next_u64() % static_cast<std::uint64_t>(in) == 0; };
  const auto upto = [&](std::uint64_t n) { return static_cast<std::int64_t>(random.next_u64() % n); };
  json::object s;
  switch (depth <= 0 ? random.next_u64() % 6 : random.next_u64() % 11) {
    case 0:
      return json::object{{"type", "null"}};
    case 1:
      return json::object{{"type", "boolean"}};
    case 2:
    case 3: {
      s["type"] = chance(2) ? "integer" : "number";
      const std::int64_t low = upto(400) - 200;
      if (chance(2)) s["minimum"] = low;
      if (chance(2)) s["maximum"] = low + 1 + upto(500);
      return s;
    }
    case 4: {
      s["type"] = "string";
      if (chance(3)) {
        s["pattern"] = std::vector<const char*>{"^[a-c]{1,3}$", "^(x|yz)+$", "q",
                                                "^[0-9]+(\\.[0-9]{2})?$"}[random.next_u64() % 4];
        return s;
      }
      const std::int64_t low = upto(4);
      if (chance(2)) s["minLength"] = low;
      if (chance(2)) s["maxLength"] = low + upto(6);
      return s;
    }
    case 5:
      return json::object{{"enum", json::array{"red", 7, nullptr, "gr\"ün", json::array{1, 2}}}};
    case 6:
    case 7: {
      s["type"] = "object";
      json::object properties;
      json::array required;
      for (std::int64_t i = upto(4); i > 0; --i) {
        const std::string key = "k" + std::to_string(i);
        properties[key] = random_schema(random, depth - 1);
        if (chance(2)) required.emplace_back(key);
      }
      if (chance(6) && depth > 1) properties["self"] = json::object{{"$ref", "#/$defs/d"}};
      if (chance(2)) s["additionalProperties"] = chance(2) ? json::value(false) : random_schema(random, 0);
      s["properties"] = std::move(properties);
      s["required"] = std::move(required);
      return s;
    }
    case 8: {
      s["type"] = "array";
      s["items"] = random_schema(random, depth - 1);
      const std::int64_t low = upto(3);
      if (chance(2)) s["minItems"] = low;
      if (chance(2)) s["maxItems"] = low + upto(3);
      return s;
    }
    case 9:
      return json::object{
          {"anyOf", json::array{random_schema(random, depth - 1), random_schema(random, depth - 1)}}};
    default:
      return json::object{{"$ref", "#/$defs/d"}};
  }
}

TEST(JsonSchema, WhatRandomModelsWriteIsValid) {
  SeededRandom random(17);
  std::size_t ended = 0, compiled = 0;
  const auto tokens = trie(900);
  const auto tokenizer = Tokenizer::from_huggingface_text(testing::tiny_tokenizer_json(900),
                                                          R"({"eos_token":"<|endoftext|>"})", "tiny");
  for (int round = 0; round < 250; ++round) {
    json::value schema = random_schema(random, 3);
    schema.as_object()["$defs"] = json::object{
        {"d", json::object{{"type", "object"},
                           {"properties", json::object{{"n", json::object{{"type", "integer"}}},
                                                       {"next", json::object{{"$ref", "#/$defs/d"}}}}},
                           {"required", json::array{"n"}}}}};
    const auto network = compile_schema(schema);
    if (!network) continue;  // two numbers that leave nothing, say
    ++compiled;
    const auto masks = std::make_shared<Masks>(*network, tokens);
    for (const float temperature : {0.0f, 1.0f, 5.0f}) {
      Matcher matcher(masks);
      Sampler sampler(
          {.temperature = temperature, .top_p = temperature > 1 ? 0.9f : 1.0f, .seed = random.next_u64()},
          900);
      std::string text;
      bool done = false;
      for (int step = 0; step < 400 && !done; ++step) {
        std::vector<float> logits(900);
        for (std::size_t id = 0; id < logits.size(); ++id) {
          logits[id] = static_cast<float>(4 * random.next_unit());
          const std::string piece = tokenizer->piece(static_cast<TokenId>(id));
          if (piece == "\"" || piece == "}" || piece == "]") logits[id] += 2 + static_cast<float>(step) / 20;
        }
        const auto allowed = matcher.allowed();
        ASSERT_TRUE(std::any_of(allowed.begin(), allowed.end(), [](std::uint64_t bits) { return bits != 0; }))
            << json::serialize(schema) << " " << text;
        const TokenId id = sampler.sample(logits, {}, allowed);
        if (tokenizer->ends_generation(id)) {
          done = true;
          break;
        }
        const std::string piece = tokenizer->piece(id);
        ASSERT_TRUE(matcher.read(piece)) << text << " + " << piece;
        text += piece;
        done = matcher.complete();
      }
      if (!done) continue;
      ++ended;
      const auto value = parse_json(text, "text");
      ASSERT_TRUE(value) << text;
      EXPECT_TRUE(valid(*value, schema, schema)) << json::serialize(schema) << "\n" << text;
    }
  }
  EXPECT_GT(compiled, 200u);
  EXPECT_GT(ended, 2 * compiled);
}

TEST(Masks, StatesThatGrowTooManyAreForgottenWithoutAnyoneNoticing) {
  const auto masks = std::make_shared<Masks>(*any_object(), trie());
  Matcher a(masks);
  ASSERT_TRUE(a.read("{\"x\": [1"));
  const std::vector<std::uint64_t> before(a.allowed().begin(), a.allowed().end());
  // Ever deeper and different: each nesting is a state of its own.
  SeededRandom random(1);
  const std::uint64_t epoch = masks->epoch();
  for (int i = 0; i < 200'000 && masks->epoch() == epoch; ++i) {
    Matcher b(masks);
    std::string text = "{\"\":";
    for (int depth = 0; depth < 20; ++depth) text += random.next_u64() % 2 == 0 ? "[" : "{\"\":";
    ASSERT_TRUE(b.read(text)) << text;
  }
  EXPECT_NE(masks->epoch(), epoch);
  EXPECT_EQ(std::vector<std::uint64_t>(a.allowed().begin(), a.allowed().end()), before);
  EXPECT_TRUE(a.read("]}"));
  EXPECT_TRUE(a.complete());
}

/// Definitions that each name the next one twice: twice as many ways with each.
TEST(Masks, AlternativesThatMultiplyAreCutOff) {
  for (const int depth : {3, 25}) {
    json::object definitions;
    for (int i = 0; i < depth; ++i) {
      const json::object next{{"$ref", fmt::format("#/$defs/d{}", i + 1)}};
      definitions[fmt::format("d{}", i)] = json::object{{"anyOf", json::array{next, next}}};
    }
    definitions[fmt::format("d{}", depth)] = json::object{{"type", "integer"}};
    const auto network = compile_schema(json::object{{"$ref", "#/$defs/d0"}, {"$defs", definitions}});
    ASSERT_OK(network);
    Masks masks(*network, trie());
    EXPECT_NE(masks.start(), Masks::kNone);
    EXPECT_EQ(masks.wide(), depth > 14);
  }
}

}  // namespace
}  // namespace retort::grammar
