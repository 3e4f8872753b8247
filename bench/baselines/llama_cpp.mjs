// Serves llama.cpp to bench/baselines/llama_cpp_engine.py: one JSON request a line on standard
// input, one JSON answer a line on standard output. Arguments: the model's file, threads, texts at
// once, tokens of context for each.
import {createInterface} from "node:readline";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

// The package is looked up where the caller keeps its node_modules, not beside this file.
const entry = createRequire(`${process.cwd()}/`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(entry).href);

const [file, threads, texts, length] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({
    sequences: Number(texts), contextSize: Number(length), batchSize: 512,
    threads: {ideal: Number(threads), min: Number(threads)},
});
const sequences = Array.from({length: Number(texts)}, () => context.getSequence());

async function next(sequence, tokens, extra = {generateNext: {token: true, options: {temperature: 0}}}) {
    const input = tokens.map((token, i) => i + 1 < tokens.length ? token : [token, extra]);
    return (await sequence.controlledEvaluate(input))[tokens.length - 1].next;
}

async function clearAll() {
    for (const sequence of sequences) await sequence.clearHistory();
}

const chosen = [];
const serve = {
    async logits({text}) {
        await clearAll();
        const found = await next(sequences[0], text, {generateNext: {logits: true}});
        return {logits: [...found.logits.entries()]};
    },
    async prefill({texts}) {
        await clearAll();
        await Promise.all(texts.map((text, i) => next(sequences[i], text)));
        return {};
    },
    async read({texts}) {
        await clearAll();
        const found = await Promise.all(texts.map((text, i) => next(sequences[i], text)));
        found.forEach((one, i) => { chosen[i] = one.token; });
        return {};
    },
    async decode({texts, start, steps}) {
        for (const sequence of sequences.slice(0, texts)) {
            if (sequence.nextTokenIndex > start) {
                await sequence.eraseContextTokenRanges([{start, end: sequence.nextTokenIndex}]);
            }
        }
        await Promise.all(Array.from({length: texts}, async (_, i) => {
            let token = chosen[i];
            for (let step = 0; step < steps; step++) token = (await next(sequences[i], [token])).token;
        }));
        return {};
    },
};

console.log(JSON.stringify({ready: true}));
for await (const line of createInterface({input: process.stdin})) {
    const request = JSON.parse(line);
    try {
        console.log(JSON.stringify(await serve[request.call](request)));
    } catch (error) {
        console.log(JSON.stringify({error: String(error)}));
    }
}
process.exit(0);
