// Lists VMs and starts one, over gRPC, with nothing of ours but the descriptor set.
//
// node client.mjs DESCRIPTOR_SET HOST:PORT AUTHORITY_PEM VM_NAME
// In the environment LIMIQUANTIX_TOKEN is what it calls with: an access token or an API key.
// Prints one JSON line: the names listed, the state after the start, the errors that a second start and a
// caller without a token get.

import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [descriptorSet, address, authority, vmName] = process.argv.slice(2);
const definition = loader.loadFileDescriptorSetFromBuffer(readFileSync(descriptorSet), { enums: String, longs: Number });
const { VMService } = grpc.loadPackageDefinition(definition).limiquantix.compute.v1;
const bearer = grpc.credentials.createFromMetadataGenerator((_, done) => {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${process.env.LIMIQUANTIX_TOKEN}`);
  done(null, metadata);
});
const tls = grpc.credentials.createSsl(readFileSync(authority));
const client = new VMService(address, grpc.credentials.combineChannelCredentials(tls, bearer));
// Without a token it is nobody.
const nobody = new VMService(address, tls);

const call = (method, request, caller = client) =>
  new Promise((resolve, reject) =>
    caller[method](request, { deadline: Date.now() + 60_000 }, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

const { vms } = await call("ListVMs", {});
const { id } = vms.find((vm) => vm.name === vmName);
const started = await call("StartVM", { id });
const refusal = (answer) =>
  answer.then(
    () => null,
    (error) => ({ code: grpc.status[error.code], message: error.details }),
  );
const refused = await refusal(call("StartVM", { id }));
const unknown = await refusal(call("ListVMs", {}, nobody));
console.log(JSON.stringify({ names: vms.map((vm) => vm.name), state: started.status.state, refused, unknown }));
client.close();
nobody.close();
