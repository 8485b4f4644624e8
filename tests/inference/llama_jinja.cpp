// Renders templates with the Jinja engine of llama.cpp: one {"template": ..., "inputs": ...} a
// line on standard input, one JSON string a line on standard output.
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "json.h"

#include <iostream>
#include <string>

int main() {
    std::string line;
    while (std::getline(std::cin, line)) {
        const common_json request = common_json::parse(line);
        const std::string source = request.at("template").get<std::string>();
        jinja::lexer lexer;
        jinja::program program = jinja::parse_from_tokens(lexer.tokenize(source));
        jinja::context context(source);
        jinja::global_from_json(context, request.at("inputs"), false);
        jinja::runtime runtime(context);
        const jinja::value results = runtime.execute(program);
        const std::string text = jinja::runtime::gather_string_parts(results)->as_string().str();
        std::cout << common_json(text).dump() << "\n";
    }
}
