"""Writes documents with the official client, and prints for each what the server told of it: one JSON object a line.

Arguments: port, user, password, bucket, scope and collection. It ends with 3 where the client is not installed.
"""

import json
import sys
from datetime import timedelta

try:
    from couchbase.auth import PasswordAuthenticator
    from couchbase.cluster import Cluster
    from couchbase.options import ClusterOptions
    from couchbase.transcoder import RawJSONTranscoder
except ImportError:
    sys.exit(3)

port, user, password, bucket_name, scope, collection = sys.argv[1:]
cluster = Cluster(f"couchbase://127.0.0.1:{port}=mcd", ClusterOptions(PasswordAuthenticator(user, password)))
bucket = cluster.bucket(bucket_name)


def tell(where, key, body, result):
    token = result.mutation_token()
    print(json.dumps({
        "collection": where,
        "id": key,
        "body": body,
        "vb": token.partition_id,
        "vbuuid": token.partition_uuid,
        "seqno": token.sequence_number,
    }))


for where, target in (("", bucket.default_collection()), (collection, bucket.scope(scope).collection(collection))):
    for number in range(200):
        key = f"document {number} of {where or 'the default'} ü"
        # Long ones are compressed by the client.
        body = json.dumps({"n": number, "text": "lorem ipsum " * (number % 40)})
        tell(where, key, body, target.upsert(key, body, transcoder=RawJSONTranscoder(), timeout=timedelta(seconds=20)))
        if number % 7 == 3:
            tell(where, key, None, target.remove(key))
cluster.close()
