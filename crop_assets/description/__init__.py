"""What describes a finished dataset to those who receive it. The modules beside the stages are pure logic."""
