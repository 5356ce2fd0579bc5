// Lists VMs and starts one, over gRPC, with nothing of ours but the descriptor set.
//
// node client.mjs DESCRIPTOR_SET HOST:PORT VM_NAME
// Prints one JSON line: the names listed, the state after the start, and the error a second start gets.

import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [descriptorSet, address, vmName] = process.argv.slice(2);
const definition = loader.loadFileDescriptorSetFromBuffer(readFileSync(descriptorSet), { enums: String, longs: Number });
const { VMService } = grpc.loadPackageDefinition(definition).limiquantix.compute.v1;
const client = new VMService(address, grpc.credentials.createInsecure());

const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: Date.now() + 60_000 }, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

const { vms } = await call("ListVMs", {});
const { id } = vms.find((vm) => vm.name === vmName);
const started = await call("StartVM", { id });
const refused = await call("StartVM", { id }).then(
  () => null,
  (error) => ({ code: grpc.status[error.code], message: error.details }),
);
console.log(JSON.stringify({ names: vms.map((vm) => vm.name), state: started.status.state, refused }));
client.close();
